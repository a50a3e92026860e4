// cc: -pthread
/*
 * Executes a path again and again while another process rewrites its bytes in memory that both share.
 *
 *     flip_exec ONE OTHER ROUNDS
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int rounds = argc == 4 ? atoi(argv[3]) : 0;
	char *path = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int ended = 0;

	if (rounds <= 0 || path == MAP_FAILED) {
		fputs("usage: flip_exec ONE OTHER ROUNDS\n", stderr);
		return 2;
	}
	strcpy(path, argv[1]);
	pid_t flipper = fork();
	if (flipper == 0)
		for (;;) {
			/* Both have the same length, and differ in one byte at the end. */
			memcpy(path, argv[2], strlen(argv[2]) + 1);
			memcpy(path, argv[1], strlen(argv[1]) + 1);
		}
	for (int i = 0; i < rounds; i++) {
		pid_t child = fork();
		int status;

		if (child == 0) {
			char *const args[] = { path, NULL };
			execve(path, args, NULL);
			_exit(0);
		}
		waitpid(child, &status, 0);
		ended += WIFEXITED(status);
	}
	kill(flipper, SIGKILL);
	waitpid(flipper, NULL, 0);
	puts(ended ? "some ended" : "none ended");
	return 0;
}
