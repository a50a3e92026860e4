/*
 * Guest: times system calls in a loop, from inside.
 *
 *     loops THREADS ROUNDS MILLISECONDS OPERATION...
 *
 * For each operation in turn THREADS threads make the same call as fast as they can, ROUNDS times
 * for about MILLISECONDS each (so that a slow supervisor takes no longer than a fast one). Prints
 * one line a round, `OPERATION NANOSECONDS`, the time that passed divided by the number of calls
 * of all threads together, and for an operation that a supervisor answers one line
 * `answer OPERATION VALUE`. Two rounds before the first warm up and find the number of calls.
 * `set-clock` among the operations sets the time of day once, to what it is, and is not timed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* syslog(2), SYSLOG_ACTION_SIZE_BUFFER: a number, and no memory of the caller is touched. */
#define SIZE_BUFFER 10
/* A file of the host that every view of it shows, read-only or not. */
#define SOME_FILE "/usr/bin/env"
#define MAX_THREADS 256

struct operation {
	const char *name;
	/* One call; returns what the kernel answered. */
	long (*call)(void);
	/* Whether the answer is worth telling. */
	int tells;
};

static int zero_device = -1, null_device = -1;

static long call_syslog(void)
{
	return syscall(SYS_syslog, SIZE_BUFFER, NULL, 0);
}

static long call_getppid(void)
{
	/* 0 where the parent is outside of the pid namespace. */
	return syscall(SYS_getppid);
}

static long call_read(void)
{
	char byte;
	return read(zero_device, &byte, 1);
}

static long call_write(void)
{
	return write(null_device, "x", 1);
}

static long call_stat(void)
{
	struct stat status;
	return stat(SOME_FILE, &status);
}

static long call_open_close(void)
{
	int descriptor = open(SOME_FILE, O_RDONLY | O_CLOEXEC);
	return descriptor < 0 ? -1 : close(descriptor);
}

/* Through the vDSO where libc finds it. */
static long call_clock_gettime(void)
{
	struct timespec now;
	return clock_gettime(CLOCK_MONOTONIC, &now);
}

/* The time of day, which a sandbox may have moved; through the vDSO as well. */
static long call_realtime(void)
{
	struct timespec now;
	return clock_gettime(CLOCK_REALTIME, &now);
}

static const struct operation operations[] = {
	{ "syslog", call_syslog, 1 },
	{ "getppid", call_getppid, 0 },
	{ "read", call_read, 0 },
	{ "write", call_write, 0 },
	{ "stat", call_stat, 0 },
	{ "open+close", call_open_close, 0 },
	{ "clock_gettime", call_clock_gettime, 0 },
	{ "realtime", call_realtime, 0 },
};

/* Read by all threads, written by the main one between the barriers. */
static const struct operation *current;
static long calls_each;
static int finished;
static pthread_barrier_t begin, end;

static void die(const char *what)
{
	fprintf(stderr, "loops: %s: %s\n", what, strerror(errno));
	exit(2);
}

/* An answer that changes, or an unexpected failure, makes the figure worthless. */
static void run_calls(const struct operation *operation, long calls)
{
	long first = operation->call();

	if (first < 0 && !operation->tells)
		die(operation->name);
	for (long i = 1; i < calls; i++) {
		if (operation->call() != first) {
			fprintf(stderr, "loops: %s: the answer changed from %ld\n",
				operation->name, first);
			exit(2);
		}
	}
}

static void *thread_main(void *unused)
{
	(void)unused;
	for (;;) {
		pthread_barrier_wait(&begin);
		if (finished)
			return NULL;
		run_calls(current, calls_each);
		pthread_barrier_wait(&end);
	}
}

static double nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* One round; returns the nanoseconds that it took. */
static double timed_round(int threads)
{
	double start;

	/* Alone there is nobody to wait for. */
	if (threads == 1) {
		start = nanoseconds();
		run_calls(current, calls_each);
		return nanoseconds() - start;
	}
	/* The clock is read before the barrier opens: whoever arrives last lets all go at once. */
	start = nanoseconds();
	pthread_barrier_wait(&begin);
	run_calls(current, calls_each);
	pthread_barrier_wait(&end);
	return nanoseconds() - start;
}

static void measure(const struct operation *operation, int threads, int rounds, double budget)
{
	current = operation;
	calls_each = 16;
	for (int round = -2; round < rounds; round++) {
		double took = timed_round(threads);

		if (round >= 0) {
			printf("%s %.3f\n", operation->name, took / (double)(calls_each * threads));
		} else {
			double wanted = (double)calls_each * budget / took;
			calls_each = wanted < 16 ? 16 : wanted > 1e8 ? 100000000 : (long)wanted;
		}
	}
	if (operation->tells) {
		long value = operation->call();
		printf("answer %s %ld\n", operation->name, value < 0 ? -(long)errno : value);
	}
}

static void set_clock(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_REALTIME, &now) || clock_settime(CLOCK_REALTIME, &now))
		die("cannot set the clock");
}

static const struct operation *find(const char *name)
{
	for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++)
		if (!strcmp(operations[i].name, name))
			return &operations[i];
	fprintf(stderr, "loops: no operation is called %s\n", name);
	exit(2);
}

int main(int argc, char **argv)
{
	pthread_t others[MAX_THREADS];
	int threads, rounds;
	double budget;

	if (argc < 5 || (threads = atoi(argv[1])) < 1 || threads > MAX_THREADS ||
	    (rounds = atoi(argv[2])) < 1 || (budget = atof(argv[3]) * 1e6) <= 0) {
		fprintf(stderr, "usage: loops THREADS ROUNDS MILLISECONDS OPERATION...\n");
		return 2;
	}
	zero_device = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	null_device = open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (zero_device < 0 || null_device < 0)
		die("cannot open /dev/zero and /dev/null");

	pthread_barrier_init(&begin, NULL, threads);
	pthread_barrier_init(&end, NULL, threads);
	for (int i = 1; i < threads; i++)
		if ((errno = pthread_create(&others[i], NULL, thread_main, NULL)))
			die("cannot start a thread");

	for (int i = 4; i < argc; i++) {
		if (!strcmp(argv[i], "set-clock"))
			set_clock();
		else
			measure(find(argv[i]), threads, rounds, budget);
	}

	finished = 1;
	if (threads > 1)
		pthread_barrier_wait(&begin);
	for (int i = 1; i < threads; i++)
		pthread_join(others[i], NULL);
	return 0;
}
