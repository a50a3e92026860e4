// cc: -pthread
/* Threads that wait for short times over and over. Processes of such threads end, or execute another
 * program: whatever state a wait is in then, the process is gone afterwards and its parent hears of
 * it. "nap": one process that goes on for ever. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 4, ROUNDS = 200 };

static void *nap(void *unused)
{
	struct timespec moment = { 0, 1000 };

	for (;;)
		nanosleep(&moment, NULL);
	return unused;
}

static int start_threads(void)
{
	pthread_t thread;

	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&thread, NULL, nap, NULL))
			return 0;
	return 1;
}

static void live_and_end(char *program, int executes, int life)
{
	if (!start_threads())
		_exit(2);
	/* No wait of its own: where the threads are at the end shall not depend on one. */
	for (volatile int i = 0; i < life; i++)
		;
	if (executes) {
		execl(program, program, "end", (char *)NULL);
		_exit(3);
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "end"))
		return 0;
	if (argc > 1 && !strcmp(argv[1], "nap")) {
		if (!start_threads())
			return 2;
		puts("naps");
		fflush(stdout);
		nap(NULL);
	}
	for (int round = 0; round < ROUNDS; round++) {
		pid_t child = fork();
		int status = 0;

		if (!child)
			live_and_end(argv[0], round % 2, 100000 * (1 + round % 16));
		if (child < 0 || waitpid(child, &status, 0) != child || status) {
			printf("round %d: %d\n", round, status);
			return 1;
		}
	}
	puts("all ended");
	return 0;
}
