// cc: -pthread
/*
 * Reads clocks in every way, as fast as it can, until there is a file: none runs backwards, and they agree. Then
 * a file that was made at the beginning still shows the time that it did, and a program that is executed finds
 * the same clocks. Says what was wrong, or "all so"; and what the largest step of the time of day was.
 *
 * save_clock UP GO [SECONDS]: SECONDS: sets the clock first.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static const char *go;
static volatile int done;
static long long largest;

static long long now(int id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

static long long of_day(void)
{
	struct timeval t;

	gettimeofday(&t, NULL);
	return t.tv_sec * SECOND + t.tv_usec * 1000LL;
}

static void wrong(const char *what, long long a, long long b)
{
	printf("%s: %lld, then %lld\n", what, a, b);
}

static const int ids[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW,
			   CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE };

enum { CLOCKS = sizeof ids / sizeof *ids };

static void *read_them(void *is_first)
{
	long long last[CLOCKS] = { 0 };

	while (!done) {
		for (int i = 0; i < CLOCKS; i++) {
			long long it = now(ids[i]);

			if (it < last[i])
				wrong("a clock runs backwards", last[i], it);
			if (i == 0 && last[i] && it - last[i] > largest)
				largest = it - last[i];
			last[i] = it;
		}
		long long before = now(CLOCK_REALTIME), day = of_day(), after = now(CLOCK_REALTIME);

		if (day < before / 1000 * 1000 || day > after)
			wrong("gettimeofday differs", before, day);
		/* (It goes by the coarse clock, which lags.) */
		long long seconds = time(NULL);

		if (seconds < before / SECOND - 1 || seconds > now(CLOCK_REALTIME) / SECOND)
			wrong("time differs", before, seconds);
		if (is_first && access(go, F_OK) == 0)
			done = 1;
	}
	return NULL;
}

/* What was executed by the other finds its clocks. */
static int compare(char **argv)
{
	long long day = atoll(argv[2]), steady = atoll(argv[3]);

	if (now(CLOCK_REALTIME) < day || now(CLOCK_REALTIME) > day + 100 * SECOND)
		wrong("the time of day after an exec", day, now(CLOCK_REALTIME));
	if (now(CLOCK_MONOTONIC) < steady || now(CLOCK_MONOTONIC) > steady + 100 * SECOND)
		wrong("the steady clock after an exec", steady, now(CLOCK_MONOTONIC));
	printf("step %s ms\nall so\n", argv[4]);
	return 0;
}

int main(int argc, char **argv)
{
	struct stat before, after;
	pthread_t thread;
	char words[3][32];

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (strcmp(argv[1], "compare") == 0)
		return compare(argv);
	go = argv[2];
	if (argc > 3) {
		struct timespec wanted = { atoll(argv[3]), 0 };

		if (clock_settime(CLOCK_REALTIME, &wanted))
			perror("clock_settime");
		if (now(CLOCK_REALTIME) / SECOND - wanted.tv_sec > 100)
			wrong("the clock is not what it was set to", wanted.tv_sec, now(CLOCK_REALTIME));
	}
	close(open("made", O_CREAT | O_WRONLY, 0600));
	stat("made", &before);
	pthread_create(&thread, NULL, read_them, NULL);
	close(open(argv[1], O_CREAT | O_WRONLY, 0600));
	read_them("first");
	pthread_join(thread, NULL);
	stat("made", &after);
	if (memcmp(&before.st_mtim, &after.st_mtim, sizeof before.st_mtim))
		wrong("a file's time", before.st_mtim.tv_sec, after.st_mtim.tv_sec);
	snprintf(words[0], 32, "%lld", now(CLOCK_REALTIME));
	snprintf(words[1], 32, "%lld", now(CLOCK_MONOTONIC));
	snprintf(words[2], 32, "%lld", largest / 1000000);
	execl("/proc/self/exe", argv[0], "compare", words[0], words[1], words[2], NULL);
	perror("exec");
	return 1;
}
