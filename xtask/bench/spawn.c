/*
 * Guest: starts a program and waits for it, again and again.
 *
 *     spawn fork|vfork COUNT PROG
 *
 * `fork` copies the process and executes PROG in the copy; `vfork` uses posix_spawn(3), which
 * borrows the parent's memory (CLONE_VM | CLONE_VFORK). Any failure ends it with status 2.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static pid_t start(int copies, char *program)
{
	char *argv[] = { program, NULL };
	pid_t child;

	if (!copies) {
		errno = posix_spawn(&child, program, NULL, NULL, argv, environ);
		return errno ? -1 : child;
	}
	child = fork();
	if (child == 0) {
		execv(program, argv);
		_exit(127);
	}
	return child;
}

int main(int argc, char **argv)
{
	int count = argc == 4 ? atoi(argv[2]) : 0;
	int copies;

	if (count < 1 || (strcmp(argv[1], "fork") && strcmp(argv[1], "vfork"))) {
		fprintf(stderr, "usage: spawn fork|vfork COUNT PROG\n");
		return 2;
	}
	copies = !strcmp(argv[1], "fork");
	for (int i = 0; i < count; i++) {
		int status;
		pid_t child = start(copies, argv[3]);

		if (child < 0 || waitpid(child, &status, 0) != child) {
			fprintf(stderr, "spawn: %s: %s\n", argv[3], strerror(errno));
			return 2;
		}
		if (status != 0) {
			fprintf(stderr, "spawn: %s ended with wait status %#x\n", argv[3], status);
			return 2;
		}
	}
	return 0;
}
