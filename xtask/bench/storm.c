/*
 * Guest: counts calls that a signal interrupted although no kernel lets it.
 *
 *     storm ROUNDS [MICROSECONDS]
 *
 * A second thread sends SIGUSR1 to the first every MICROSECONDS (default 20); the handler is
 * installed without SA_RESTART. Meanwhile the first thread does ROUNDS rounds of fork, dup, close
 * and syslog(SIZE_BUFFER). fork restarts by itself (ERESTARTNOINTR in copy_process()), dup and
 * close of a plain file never sleep, and syslog is answered from a number: natively each of them
 * never returns EINTR. A call that seccomp hands to a supervisor can be interrupted between the
 * trap and the RECV (seccomp_do_user_notification()), and then does.
 *
 * Prints `CALL COUNT` for each, the EINTRs in all rounds together, and `signals COUNT`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static atomic_int finished;
static volatile sig_atomic_t handled;
static pthread_t victim;
static long pause_nanoseconds = 20000;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

static long long nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Spins between signals: a sleep of microseconds would take far longer than it says. */
static void *storm(void *unused)
{
	(void)unused;
	while (!finished) {
		long long until = nanoseconds() + pause_nanoseconds;

		pthread_kill(victim, SIGUSR1);
		while (!finished && nanoseconds() < until)
			;
	}
	return NULL;
}

static void die(const char *what)
{
	fprintf(stderr, "storm: %s: %s\n", what, strerror(errno));
	exit(2);
}

/* Forks, and counts the attempts that were interrupted; the child ends at once. */
static int interrupted_forks(void)
{
	int count = 0;
	pid_t child;

	while ((child = fork()) < 0) {
		if (errno != EINTR)
			die("fork");
		count++;
	}
	if (child == 0)
		_exit(0);
	while (waitpid(child, NULL, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	return count;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handler };
	int rounds = argc > 1 ? atoi(argv[1]) : 0;
	long forks = 0, dups = 0, closes = 0, syslogs = 0;
	int null_device = open("/dev/null", O_WRONLY | O_CLOEXEC);
	pthread_t sender;

	if (argc > 2)
		pause_nanoseconds = atol(argv[2]) * 1000;
	if (rounds < 1 || pause_nanoseconds < 0) {
		fprintf(stderr, "usage: storm ROUNDS [MICROSECONDS]\n");
		return 2;
	}
	if (null_device < 0)
		die("cannot open /dev/null");
	victim = pthread_self();
	sigaction(SIGUSR1, &action, NULL);

	/* The sender must not be hit itself: it starts with the signal blocked. */
	sigset_t signals, before;
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &signals, &before);
	if ((errno = pthread_create(&sender, NULL, storm, NULL)))
		die("cannot start a thread");
	pthread_sigmask(SIG_SETMASK, &before, NULL);

	for (int round = 0; round < rounds; round++) {
		int copy;

		forks += interrupted_forks();
		while ((copy = dup(null_device)) < 0) {
			if (errno != EINTR)
				die("dup");
			dups++;
		}
		/* An interrupted close has not run when a supervisor's trap was the place. */
		while (close(copy) < 0) {
			if (errno != EINTR)
				die("close");
			closes++;
		}
		while (syscall(SYS_syslog, 10, NULL, 0) < 0 && errno == EINTR)
			syslogs++;
	}
	finished = 1;
	pthread_join(sender, NULL);
	printf("fork %ld\ndup %ld\nclose %ld\nsyslog %ld\nsignals %ld\n", forks, dups, closes,
	       syslogs, (long)handled);
	return 0;
}
