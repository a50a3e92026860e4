// cc: -pthread
/*
 * Calls clone3 while another thread flips its flags between none and a new user namespace, and says
 * whether a child ever found itself in one.
 *
 *     flip_clone ROUNDS
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* struct clone_args of linux/sched.h, its first version. */
struct arguments {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
};

static atomic_int done;
static volatile struct arguments arguments = {.exit_signal = SIGCHLD};

static void *flip(void *unused)
{
	(void)unused;
	while (!done) {
		arguments.flags = CLONE_NEWUSER;
		arguments.flags = 0;
	}
	return NULL;
}

static ino_t user_namespace(void)
{
	struct stat status;

	return stat("/proc/self/ns/user", &status) ? 0 : status.st_ino;
}

/* The exit status of a child that says whether its user namespace is another; -1 if there is none. */
static int child(ino_t own)
{
	int status;
	long pid = syscall(SYS_clone3, &arguments, sizeof arguments);

	if (pid == 0)
		_exit(user_namespace() == own ? 10 : 11);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	int rounds = argc == 2 ? atoi(argv[1]) : 0;
	ino_t own = user_namespace();
	pthread_t flipper;
	int escaped = 0;

	/* A libc falls back to clone where clone3 is not there, and so do programs. */
	puts(child(own) == 10 || errno == ENOSYS ? "clone3 works or is not there" : "clone3 fails");
	pthread_create(&flipper, NULL, flip, NULL);
	for (int i = 0; i < rounds; i++)
		escaped += child(own) == 11;
	done = 1;
	pthread_join(flipper, NULL);
	if (escaped)
		printf("new user namespace, %d times\n", escaped);
	return 0;
}
