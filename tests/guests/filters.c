/*
 * Loads seccomp filters of its own, or calls the kernel by other doors than 64-bit ones.
 *
 *     filters plain | listener | forks COUNT | int80 | x32
 *
 * Exits with 0 when everything was answered as it should have been; says otherwise what was not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define OWN 1002

static struct sock_filter harmless[] = {
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};
static struct sock_fprog program = {2, harmless};

static void expect(const char *what, long got, long wanted)
{
	if (got == wanted)
		return;
	fprintf(stderr, "filters: %s: %ld (errno %d), not %ld\n", what, got, errno, wanted);
	_exit(1);
}

static long load(unsigned flags)
{
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

/* own(0) looks at what was recorded of these. */
static void plain(void)
{
	expect("seccomp", load(0), 0);
	expect("seccomp with LOG", load(SECCOMP_FILTER_FLAG_LOG), 0);
	expect("prctl", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
	expect("a bad address", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, 8), -1);
	expect("its errno", errno, EFAULT);
	expect("own(0)", syscall(OWN), 0);
}

static void listener(void)
{
	expect("a listener", load(SECCOMP_FILTER_FLAG_NEW_LISTENER), -1);
	expect("its errno", errno, EBUSY);
	expect("a plain filter", load(0), 0);
}

static void forks(long count)
{
	for (long done = 0; done < count; done += 8) {
		for (int i = 0; i < 8; i++)
			if (!fork()) {
				expect("seccomp", load(0), 0);
				_exit(0);
			}
		for (int i = 0; i < 8; i++) {
			int status = -1;

			wait(&status);
			expect("status of a child", status, 0);
		}
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "plain"))
		plain();
	else if (!strcmp(mode, "listener"))
		listener();
	else if (!strcmp(mode, "forks"))
		forks(argc > 2 ? atol(argv[2]) : 1);
	else if (!strcmp(mode, "x32"))
		expect("x32 getpid", syscall(0x40000000 | SYS_getpid), 0);
	else if (!strcmp(mode, "int80")) {
		long result = 20; /* getpid of i386 */

		__asm__ volatile("int $0x80" : "+a"(result) : : "memory");
		expect("i386 getpid", result, 0);
	} else {
		fputs("usage: filters plain | listener | forks COUNT | int80 | x32\n", stderr);
		return 2;
	}
	return 0;
}
