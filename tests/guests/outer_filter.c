/*
 * Runs a program under a plain seccomp filter without a listener, as container runtimes and service
 * managers do.
 *
 *     outer_filter CALL=ERRNO,... PROG ARGS...
 *
 * CALL is one of those below, or `namespaces` (clone and unshare with a flag of any kind of
 * namespace) or `time` (unshare with CLONE_NEWTIME); ERRNO is EPERM, ENOSYS or EINVAL. Everything
 * else is allowed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#define NAMESPACES (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | \
		    CLONE_NEWPID | CLONE_NEWNET)
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static const struct {
	const char *name;
	unsigned int number;
} calls[] = {
	{ "clone3", SYS_clone3 },
	{ "fsopen", SYS_fsopen },
	{ "keyctl", SYS_keyctl },
	{ "mount", SYS_mount },
	{ "open_tree", SYS_open_tree },
	{ "personality", SYS_personality },
	{ "pidfd_getfd", SYS_pidfd_getfd },
	{ "pidfd_open", SYS_pidfd_open },
	{ "process_vm_readv", SYS_process_vm_readv },
	{ "process_vm_writev", SYS_process_vm_writev },
	{ "seccomp", SYS_seccomp },
};

static const struct {
	const char *name;
	unsigned int number;
} errnos[] = { { "EPERM", EPERM }, { "ENOSYS", ENOSYS }, { "EINVAL", EINVAL } };

static struct sock_filter code[128];
static unsigned short length;

static void add(struct sock_filter instruction)
{
	code[length++] = instruction;
}

/* Refuses a call; with a mask only where its first argument has one of these bits. */
static void refuse(unsigned int number, unsigned int mask, unsigned int error)
{
	add((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
					 offsetof(struct seccomp_data, nr)));
	add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, mask ? 3 : 1));
	if (mask) {
		add((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
						 offsetof(struct seccomp_data, args)));
		add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, mask, 0, 1));
	}
	add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error));
}

static int rule(const char *call, const char *error)
{
	unsigned int number = 0;

	for (size_t i = 0; i < LENGTH(errnos); i++)
		if (error && !strcmp(errnos[i].name, error))
			number = errnos[i].number;
	if (!number)
		return -1;
	if (!strcmp(call, "namespaces")) {
		refuse(SYS_clone, NAMESPACES, number);
		refuse(SYS_unshare, NAMESPACES | CLONE_NEWTIME, number);
		return 0;
	}
	if (!strcmp(call, "time")) {
		refuse(SYS_unshare, CLONE_NEWTIME, number);
		return 0;
	}
	for (size_t i = 0; i < LENGTH(calls); i++)
		if (!strcmp(calls[i].name, call)) {
			refuse(calls[i].number, 0, number);
			return 0;
		}
	return -1;
}

int main(int argc, char **argv)
{
	struct sock_fprog program = { 0, code };

	if (argc < 3) {
		fputs("usage: outer_filter CALL=ERRNO,... PROG ARGS...\n", stderr);
		return 2;
	}
	for (char *word = strtok(argv[1], ","); word; word = strtok(NULL, ",")) {
		char *error = strchr(word, '=');

		if (error)
			*error++ = 0;
		if (length > LENGTH(code) - 16 || rule(word, error)) {
			fprintf(stderr, "outer_filter: what is %s?\n", word);
			return 2;
		}
	}
	add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	program.len = length;
	/* prctl, so that a filter may refuse seccomp(2) to the program. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
		perror("outer_filter: cannot load the filter");
		return 2;
	}
	execvp(argv[2], argv + 2);
	perror(argv[2]);
	return 2;
}
