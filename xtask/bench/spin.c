/*
 * Guest: uses processors, and says how much by the kernel's own books.
 *
 *     spin COUNT MILLISECONDS
 *
 * COUNT children compute until each has used so much CPU time (0: until a signal ends them). Prints
 * `cpu NANOSECONDS`: what wait4(2) says of the children and getrusage(2) of this process itself.
 * SIGXCPU ends the children and not this process: one that a limit on CPU time sends to all lets
 * it tell what was used until then.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "spin: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void noted(int signal)
{
	(void)signal;
}

static long long own_cpu_time(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Both times of a usage; the kernel scales them so that their sum is exact (cputime_adjust()). */
static long long used(const struct rusage *usage)
{
	return (usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1000000000LL +
	       (usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) * 1000LL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = noted, .sa_flags = SA_RESTART };
	int count = argc == 3 ? atoi(argv[1]) : 0;
	long long span = argc == 3 ? atoll(argv[2]) * 1000000 : -1;
	long long sum = 0;
	struct rusage usage;

	if (count < 1 || span < 0) {
		fprintf(stderr, "usage: spin COUNT MILLISECONDS\n");
		return 2;
	}
	for (int i = 0; i < count; i++) {
		pid_t child = fork();

		if (child < 0)
			die("fork");
		if (child == 0) {
			while (!span || own_cpu_time() < span)
				;
			_exit(0);
		}
	}
	if (sigaction(SIGXCPU, &action, NULL))
		die("sigaction");
	for (int i = 0; i < count; i++) {
		if (wait4(-1, NULL, 0, &usage) < 0)
			die("wait4");
		sum += used(&usage);
	}
	if (getrusage(RUSAGE_SELF, &usage))
		die("getrusage");
	printf("cpu %lld\n", sum + used(&usage));
	return 0;
}
