/*
 * Guest: many tasks that sleep.
 *
 *     crowd processes|threads COUNT
 *
 * COUNT tasks, this one included. Prints `ready PID...`, the numbers of its processes, when all of
 * them are there, closes stdout and sleeps until a signal ends it; the others end with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define STACK (64 * 1024)

static void die(const char *what)
{
	fprintf(stderr, "crowd: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void start_thread(void)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK);
	errno = pthread_create(&thread, &attributes, sleeper, NULL);
	if (errno)
		die("cannot start a thread");
	pthread_attr_destroy(&attributes);
}

static pid_t start_process(pid_t parent)
{
	pid_t child = fork();

	if (child < 0)
		die("cannot fork");
	if (child == 0) {
		if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
			_exit(2);
		close(STDOUT_FILENO);
		sleeper(NULL);
	}
	return child;
}

int main(int argc, char **argv)
{
	int count = argc == 3 ? atoi(argv[2]) : 0;
	int threads = argc == 3 && !strcmp(argv[1], "threads");
	pid_t own = getpid();

	if (count < 1 || (!threads && strcmp(argv[1], "processes"))) {
		fprintf(stderr, "usage: crowd processes|threads COUNT\n");
		return 2;
	}
	/* One write at the end: a buffer that is not empty would be copied into each child. */
	char *line = malloc(16 + (size_t)count * 12);
	if (!line)
		die("malloc");
	int length = sprintf(line, "ready %d", (int)own);
	for (int i = 1; i < count; i++) {
		if (threads)
			start_thread();
		else
			length += sprintf(line + length, " %d", (int)start_process(own));
	}
	puts(line);
	/* A pipe to somebody else is nothing that every peer can save. */
	fclose(stdout);
	sleeper(NULL);
	return 0;
}
