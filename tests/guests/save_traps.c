// cc: -pthread
/*
 * SIGTRAP across a save: what a program does of it, and what of it waits, stays as it was.
 *
 *     save_traps READY GO HOW    touches READY; goes on once GO exists, after the save
 *
 * HOW: handled; ignored; waits (blocked, with one for the process and one for each thread);
 * ignored-waits (the same, ignored and blocked, for the process and its first thread); always (made and sent again
 * and again); timed (sent by a timer that never stops).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int failed;
#define CHECK(what) do { if (!(what)) { failed = 1; printf("line %d: not so: %s (%s)\n", __LINE__, #what, strerror(errno)); } } while (0)

#define THREADS 3
enum { OF_PROCESS = 100, OF_THREAD = 200 };
static const char *ready, *go;
static volatile int heard;
static volatile int beginning;
static sigset_t traps;
static struct sigaction action;

static void hear(int signal, siginfo_t *information, void *context)
{
	(void)signal, (void)information, (void)context;
	heard++;
}

static void wait_for_go(void)
{
	while (access(go, F_OK))
		usleep(10000);
}

/* What was set, with its flags and its set. */
static void is_as_it_was(void)
{
	struct sigaction now;
	CHECK(!sigaction(SIGTRAP, NULL, &now));
	CHECK(now.sa_handler == action.sa_handler && now.sa_flags == action.sa_flags);
	CHECK(sigismember(&now.sa_mask, SIGUSR2) == 1 && sigismember(&now.sa_mask, SIGUSR1) == 0);
}

/* What waits, as it was sent: the thread's own first. */
static void takes(int own)
{
	const struct timespec none = { 0 };
	siginfo_t information;
	CHECK(sigtimedwait(&traps, &information, &none) == SIGTRAP);
	CHECK(information.si_code == SI_QUEUE && information.si_value.sival_int == own);
	CHECK(information.si_pid == getpid() && information.si_uid == getuid());
}

static void nothing_waits(void)
{
	sigset_t waiting;
	CHECK(!sigpending(&waiting) && !sigismember(&waiting, SIGTRAP));
}

static void send_to_itself(int value)
{
	union sigval it = { .sival_int = value };
	CHECK(!pthread_sigqueue(pthread_self(), SIGTRAP, it));
}

static void *thread(void *number)
{
	int own = OF_THREAD + (int)(long)number;
	send_to_itself(own);
	__atomic_add_fetch(&beginning, 1, __ATOMIC_SEQ_CST);
	wait_for_go();
	takes(own);
	return NULL;
}

static void all_wait(int count)
{
	pthread_t threads[THREADS];
	union sigval it = { .sival_int = OF_PROCESS };
	sigprocmask(SIG_BLOCK, &traps, NULL);
	/* (A thread that waits for it with none of its own would get it.) */
	send_to_itself(OF_THREAD);
	CHECK(!sigqueue(getpid(), SIGTRAP, it));
	for (long i = 0; i < count; i++)
		pthread_create(&threads[i], NULL, thread, (void *)(i + 1));
	while (beginning < count)
		usleep(1000);
	close(open(ready, O_CREAT | O_WRONLY, 0600));
	wait_for_go();
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	takes(OF_THREAD);
	takes(OF_PROCESS);
	nothing_waits();
	is_as_it_was();
	sigprocmask(SIG_UNBLOCK, &traps, NULL);
}

/* Threads that do little but trap: each trap comes once. */
static __thread volatile long own;

static void hear_own(int signal)
{
	(void)signal;
	own++;
}

static void *trap(void *sent)
{
	long made = 0;
	while (access(go, F_OK))
		for (int i = 0; i < 1000; i++) {
			if (sent)
				raise(SIGTRAP);
			else
				__asm__ volatile("int3");
			made++;
			if (own != made) {
				CHECK(own == made);
				return NULL;
			}
		}
	return NULL;
}

static int traps_all_the_time(void)
{
	pthread_t threads[4];
	signal(SIGTRAP, hear_own);
	for (long i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, trap, (void *)(i % 2));
	close(open(ready, O_CREAT | O_WRONLY, 0600));
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	puts(failed ? "not so" : "all so");
	return failed;
}

/* A timer sends it to the process all the time. */
static int timers_send_it(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGTRAP };
	struct itimerspec often = { { 0, 100000 }, { 0, 100000 } };
	timer_t timer;
	sigaction(SIGTRAP, &(struct sigaction){ .sa_sigaction = hear, .sa_flags = SA_SIGINFO | SA_RESTART }, NULL);
	CHECK(!timer_create(CLOCK_MONOTONIC, &event, &timer) && !timer_settime(timer, 0, &often, NULL));
	close(open(ready, O_CREAT | O_WRONLY, 0600));
	wait_for_go();
	for (int before = heard; heard < before + 10;)
		usleep(1000);
	puts(failed ? "not so" : "all so");
	return failed;
}

/* An instruction that traps kills a program that ignores that. */
static void is_killed_by_a_trap(void)
{
	int status = 0;
	pid_t child = fork();
	if (!child) {
		raise(SIGTRAP);
		__asm__ volatile("int3");
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGTRAP);
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	ready = argv[1], go = argv[2];
	if (!strcmp(argv[3], "always"))
		return traps_all_the_time();
	if (!strcmp(argv[3], "timed"))
		return timers_send_it();
	int ignored = !strncmp(argv[3], "ignored", 7), waits = strstr(argv[3], "waits") != NULL;
	action.sa_sigaction = hear;
	if (ignored)
		action.sa_handler = SIG_IGN;
	action.sa_flags = SA_SIGINFO | SA_RESTART;
	sigaddset(&action.sa_mask, SIGUSR2);
	CHECK(!sigaction(SIGTRAP, &action, NULL));
	sigaction(SIGTRAP, NULL, &action);
	sigaddset(&traps, SIGTRAP);
	if (waits) {
		all_wait(ignored ? 0 : THREADS);
	} else {
		close(open(ready, O_CREAT | O_WRONLY, 0600));
		wait_for_go();
		is_as_it_was();
	}
	if (ignored) {
		raise(SIGTRAP);
		is_killed_by_a_trap();
		is_as_it_was();
	} else {
		__asm__ volatile("int3");
		raise(SIGTRAP);
		CHECK(heard == 2);
	}
	nothing_waits();
	puts(failed ? "not so" : "all so");
	return failed;
}
