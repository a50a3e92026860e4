/*
 * Loads a seccomp filter that allows everything, with `listener` one that asks for a listener, and
 * then makes calls that are refused in a sandbox.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static void say(const char *what, long result)
{
	if (result >= 0)
		printf("%s %ld\n", what, result);
	else
		printf("%s %s\n", what, errno == EPERM ? "EPERM" : errno == EBUSY ? "EBUSY"
					: strerror(errno));
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = {1, &allow};
	int listener = argc == 2 && !strcmp(argv[1], "listener");
	char attributes[128] = {0};

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	say("filter", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			      listener ? SECCOMP_FILTER_FLAG_NEW_LISTENER : 0, &program));
	say("unshare", unshare(CLONE_NEWUSER));
	say("bpf", syscall(SYS_bpf, 0, attributes, sizeof attributes));
	close(open("file", O_WRONLY | O_CREAT, 0644));
	say("chmod", chmod("file", 04755));
	return 0;
}
