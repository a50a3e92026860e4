// cc: -pthread
/*
 * Threads that do nothing but read a clock, until there is a file: it runs backwards for none of them. Says how far it
 * did, or "all so".
 *
 * save_readers UP GO THREADS
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static const char *go;
static volatile int done;
static int wrong;

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *read_it(void *unused)
{
	long long last = 0;

	while (!done) {
		long long it = now();

		if (it < last) {
			printf("the clock runs backwards by %lld us\n", (last - it) / 1000);
			wrong = 1;
		}
		last = it;
	}
	return unused;
}

int main(int argc, char **argv)
{
	int count = argc > 3 ? atoi(argv[3]) : 1;
	pthread_t threads[64];

	go = argv[2];
	for (int i = 0; i < count && i < 64; i++)
		if (pthread_create(&threads[i], NULL, read_it, NULL))
			return 2;
	close(open(argv[1], O_CREAT | O_WRONLY, 0600));
	while (access(go, F_OK) != 0)
		usleep(1000);
	done = 1;
	for (int i = 0; i < count && i < 64; i++)
		pthread_join(threads[i], NULL);
	if (!wrong)
		puts("all so");
	return wrong;
}
