// cc: -pthread -lrt
/*
 * Waits for so many milliseconds of its own clocks in every way, and says which wait ended early or
 * in another way than by its time; then how many there were.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static long long span;
static long long begun;
static int waits;

static long long now(int id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct timespec timespec(long long time)
{
	return (struct timespec){ time / 1000000000, time % 1000000000 };
}

static struct timeval timeval(long long time)
{
	return (struct timeval){ time / 1000000000, time % 1000000000 / 1000 };
}

static struct timespec *in(int id, struct timespec *deadline)
{
	*deadline = timespec(now(id) + span);
	return deadline;
}

static void begin(void)
{
	begun = now(CLOCK_MONOTONIC);
}

/* Millisecond calls round; a deadline of another clock is off by as much as the two readings. */
static void end(const char *name, int as_expected)
{
	long long passed = now(CLOCK_MONOTONIC) - begun;

	waits++;
	if (passed < span - 5000000 || !as_expected)
		printf("%s: %s after %lld us\n", name, as_expected ? "early" : "wrong end",
		       passed / 1000);
}

static void handle(int signal)
{
	(void)signal;
}

static void threads(void)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t day = PTHREAD_COND_INITIALIZER, steady;
	pthread_condattr_t attributes;
	struct timespec deadline;
	sem_t semaphore;

	pthread_mutex_lock(&mutex);
	begin();
	end("pthread_cond_timedwait",
	    pthread_cond_timedwait(&day, &mutex, in(CLOCK_REALTIME, &deadline)) == ETIMEDOUT);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&steady, &attributes);
	begin();
	end("pthread_cond_timedwait, monotonic",
	    pthread_cond_timedwait(&steady, &mutex, in(CLOCK_MONOTONIC, &deadline)) == ETIMEDOUT);
	begin();
	end("pthread_mutex_timedlock",
	    pthread_mutex_timedlock(&mutex, in(CLOCK_REALTIME, &deadline)) == ETIMEDOUT);
	sem_init(&semaphore, 0, 0);
	begin();
	end("sem_timedwait",
	    sem_timedwait(&semaphore, in(CLOCK_REALTIME, &deadline)) && errno == ETIMEDOUT);
}

static void descriptors(void)
{
	struct timespec rest = timespec(span);
	struct timeval left = timeval(span);
	struct epoll_event event;
	int epoll = epoll_create1(0);

	begin();
	end("poll", poll(NULL, 0, span / 1000000) == 0);
	begin();
	end("ppoll", ppoll(NULL, 0, &rest, NULL) == 0);
	begin();
	end("select", select(0, NULL, NULL, NULL, &left) == 0 && !left.tv_sec && !left.tv_usec);
	begin();
	end("pselect", pselect(0, NULL, NULL, NULL, &rest, NULL) == 0);
	begin();
	end("epoll_wait", epoll_wait(epoll, &event, 1, span / 1000000) == 0);
}

/* (On a busy machine all of it may be over.) */
static int is_near(long long left)
{
	return left <= span + 1000000 && (left > 0 || now(CLOCK_MONOTONIC) - begun >= span);
}

static void timers(void)
{
	struct itimerspec timer = { 0 }, told;
	struct itimerval real = { 0 }, told_real;
	int fd = timerfd_create(CLOCK_REALTIME, 0);
	sigset_t none, alarms;
	uint64_t times;
	timer_t id;

	begin();
	in(CLOCK_REALTIME, &timer.it_value);
	timerfd_settime(fd, TFD_TIMER_ABSTIME, &timer, NULL);
	timerfd_gettime(fd, &told);
	if (!is_near(told.it_value.tv_sec * 1000000000LL + told.it_value.tv_nsec))
		puts("timerfd_gettime tells another rest");
	end("timerfd, a deadline of the day", read(fd, &times, 8) == 8 && times == 1);
	fd = timerfd_create(CLOCK_MONOTONIC, 0);
	begin();
	timer.it_value = timespec(span);
	timerfd_settime(fd, 0, &timer, NULL);
	end("timerfd", read(fd, &times, 8) == 8 && times == 1);

	/* It comes in the wait and not before, however late that begins. */
	sigemptyset(&none);
	sigemptyset(&alarms);
	sigaddset(&alarms, SIGALRM);
	sigprocmask(SIG_BLOCK, &alarms, NULL);
	begin();
	real.it_value = timeval(span);
	setitimer(ITIMER_REAL, &real, NULL);
	getitimer(ITIMER_REAL, &told_real);
	if (!is_near(told_real.it_value.tv_sec * 1000000000LL + told_real.it_value.tv_usec * 1000))
		puts("getitimer tells another rest");
	sigsuspend(&none);
	end("setitimer", 1);

	timer_create(CLOCK_REALTIME, NULL, &id);
	begin();
	in(CLOCK_REALTIME, &timer.it_value);
	timer_settime(id, TIMER_ABSTIME, &timer, NULL);
	timer_gettime(id, &told);
	if (!is_near(told.it_value.tv_sec * 1000000000LL + told.it_value.tv_nsec))
		puts("timer_gettime tells another rest");
	sigsuspend(&none);
	end("timer_settime, a deadline of the day", 1);
	sigprocmask(SIG_UNBLOCK, &alarms, NULL);

	if (alarm(100) != 0 || alarm(0) != 100)
		puts("alarm tells another rest");
}

static void sleeps(void)
{
	struct timespec rest = timespec(span), left = { 0 };
	struct itimerval real = { 0 };
	struct sigaction action = { .sa_handler = handle };
	sigset_t set;

	begin();
	end("nanosleep", nanosleep(&rest, NULL) == 0);
	begin();
	in(CLOCK_REALTIME, &rest);
	end("clock_nanosleep, a deadline of the day",
	    clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &rest, NULL) == 0);
	begin();
	in(CLOCK_MONOTONIC, &rest);
	end("clock_nanosleep, a deadline",
	    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &rest, NULL) == 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	rest = timespec(span);
	begin();
	end("sigtimedwait", sigtimedwait(&set, NULL, &rest) < 0 && errno == EAGAIN);

	sigaction(SIGALRM, &action, NULL);
	/* Again and again: one may come before the sleep has begun. */
	real.it_value = real.it_interval = timeval(span);
	rest = timespec(100 * span);
	begin();
	setitimer(ITIMER_REAL, &real, NULL);
	end("nanosleep with a signal", nanosleep(&rest, &left) < 0 && errno == EINTR);
	real.it_value = real.it_interval = timeval(0);
	setitimer(ITIMER_REAL, &real, NULL);
	if (left.tv_sec * 1000000000LL + left.tv_nsec > 99 * span + span / 2 || !left.tv_sec)
		puts("nanosleep tells another rest");
}

static void messages(void)
{
	int set = semget(IPC_PRIVATE, 1, 0600);
	struct sembuf down = { .sem_op = -1 };
	struct timespec rest = timespec(span);

	if (set < 0)
		return;
	begin();
	end("semtimedop", semtimedop(set, &down, 1, &rest) < 0 && errno == EAGAIN);
	semctl(set, 0, IPC_RMID);
}

int main(int argc, char **argv)
{
	span = argc > 1 ? atoll(argv[1]) * 1000000 : 0;
	signal(SIGALRM, handle);
	sleeps();
	threads();
	descriptors();
	timers();
	messages();
	printf("%d waits\n", waits);
	return 0;
}
