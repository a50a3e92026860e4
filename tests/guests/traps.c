// cc: -pthread
/*
 * Makes calls that only an engine under test knows (tests/engine/stage.rs gives the numbers).
 *
 *     traps MODE [NUMBER...]
 *
 * Exits with 0 when every call was answered as it should have been; says otherwise what was not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define ECHO 1000
#define REPORT 1001
#define OWN 1002

#define sigev_tid _sigev_un._tid

static long number[8];

static void fail(const char *what, long got, long wanted)
{
	fprintf(stderr, "traps: %s: %ld (%s), not %ld\n", what, got,
		got == -1 ? strerror(errno) : "no error", wanted);
	_exit(1);
}

static void expect(const char *what, long got, long wanted)
{
	if (got != wanted)
		fail(what, got, wanted);
}

static long own(int index, long a, long b)
{
	return syscall(OWN + index, a, b);
}

static void report(long value)
{
	expect("report", syscall(REPORT, value), 0);
}

static void echo(unsigned long a, unsigned long b)
{
	expect("echo", syscall(ECHO, a, b), (a * 7 + b) & 0x7fffffff);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* echo COUNT */
static void mode_echo(void)
{
	for (long i = 0; i < number[0]; i++)
		echo(i, i * 3);
}

/* hammer THREADS MILLISECONDS: the calls of all threads are reported */
static double hammer_until;

static void *hammer(void *argument)
{
	unsigned long thread = (uintptr_t)argument, calls = 0;

	while (now() < hammer_until)
		echo(thread << 20, calls++);
	return (void *)calls;
}

static void mode_hammer(void)
{
	pthread_t threads[256];
	unsigned long calls = 0;

	hammer_until = now() + number[1] / 1e3;
	for (long i = 0; i < number[0]; i++)
		if (pthread_create(&threads[i], NULL, hammer, (void *)(i + 1)))
			fail("pthread_create", i, 0);
	for (long i = 0; i < number[0]; i++) {
		void *result;

		pthread_join(threads[i], &result);
		calls += (uintptr_t)result;
	}
	report(calls);
}

/*
 * storm COUNT MICROSECONDS: own(0, i) for each i below COUNT, while a thread-directed SIGURG arrives
 * all the time, as in a Go program; a call must return i + 1 whatever arrives
 */
static volatile sig_atomic_t signals;

static void on_signal(int signal)
{
	(void)signal;
	signals++;
}

static void handle(int signal, int flags)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};

	sigaction(signal, &action, NULL);
}

static void start_timer(int signal, long microseconds)
{
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = signal};
	struct timespec interval = {microseconds / 1000000, microseconds % 1000000 * 1000};
	struct itimerspec times = {.it_interval = interval, .it_value = interval};
	timer_t timer;

	event.sigev_tid = gettid();
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) ||
	    timer_settime(timer, 0, &times, NULL))
		fail("timer", -1, 0);
}

static void mode_storm(void)
{
	handle(SIGURG, SA_RESTART);
	start_timer(SIGURG, number[1]);
	for (long i = 0; i < number[0]; i++)
		expect("a call in the storm", own(0, i, 0), i + 1);
	report(signals);
}

/* forks COUNT: so many children, each with one trapped call, sixteen at a time */
static void mode_forks(void)
{
	for (long done = 0; done < number[0]; done += 16) {
		for (int i = 0; i < 16; i++)
			if (!fork()) {
				echo(done, i);
				_exit(0);
			}
		for (int i = 0; i < 16; i++) {
			int status = -1;

			wait(&status);
			expect("status of a child", status, 0);
		}
	}
}

/*
 * victims COUNT MICROSECONDS KINDS: children that make calls own(0) to own(KINDS - 1) without end,
 * each killed at some time within MICROSECONDS; then one more call
 */
static void mode_victims(void)
{
	for (long done = 0; done < number[0]; done += 8) {
		pid_t children[8];

		for (int i = 0; i < 8; i++) {
			children[i] = fork();
			if (!children[i])
				for (long n = i;; n++)
					own(n % number[2], n, n);
		}
		for (int i = 0; i < 8; i++) {
			usleep(rand() % (number[1] / 8 + 1));
			kill(children[i], SIGKILL);
		}
		for (int i = 0; i < 8; i++) {
			int status = -1;

			waitpid(children[i], &status, 0);
			expect("status of a victim", status, SIGKILL);
		}
	}
	echo(1, 2);
}

/* crowd THREADS: so many threads call own(0, i), which must return i; then own(1) is called, with
 * ECHO before it as long as own(2) says so */
static void *in_crowd(void *argument)
{
	expect("a call of the crowd", own(0, (uintptr_t)argument, 0), (uintptr_t)argument);
	return NULL;
}

static void mode_crowd(void)
{
	pthread_t threads[256];

	for (long i = 0; i < number[0]; i++)
		if (pthread_create(&threads[i], NULL, in_crowd, (void *)(i + 1)))
			fail("pthread_create", i, 0);
	while (own(2, 0, 0))
		echo(3, 4);
	for (int i = 0; i < 1000; i++)
		echo(i, i);
	own(1, 0, 0);
	for (long i = 0; i < number[0]; i++)
		pthread_join(threads[i], NULL);
}

/* crowd_and_stay THREADS: the same, and then own(3), which does not return */
static void mode_crowd_and_stay(void)
{
	mode_crowd();
	own(3, 0, 0);
}

/* threads THREADS COUNT: so many threads make so many calls own(0, i), which must return i + 1 */
static void *in_threads(void *argument)
{
	(void)argument;
	for (long i = 0; i < number[1]; i++)
		expect("a call of a thread", own(0, i, 0), i + 1);
	return NULL;
}

static void mode_threads(void)
{
	pthread_t threads[256];

	for (long i = 0; i < number[0]; i++)
		if (pthread_create(&threads[i], NULL, in_threads, NULL))
			fail("pthread_create", i, 0);
	for (long i = 0; i < number[0]; i++)
		pthread_join(threads[i], NULL);
}

/*
 * log MICROSECONDS: reads the kernel log in pieces while signals arrive; reports how many of its
 * bytes did not come
 */
static void mode_log(void)
{
	static char whole[1 << 17], pieces[1 << 17];
	long size = syscall(SYS_syslog, 3, whole, sizeof whole), count = 0;

	handle(SIGURG, SA_RESTART);
	start_timer(SIGURG, number[0]);
	while (syscall(SYS_syslog, 9, NULL, 0)) {
		long piece = syscall(SYS_syslog, 2, pieces + count, 7);

		if (piece <= 0 || count + piece > size)
			fail("a piece of the log", piece, 7);
		count += piece;
	}
	if (count == size)
		expect("the text of all pieces", memcmp(whole, pieces, size), 0);
	report(size - count);
}

/* memory: own(0, ADDRESS, LONG), see tests/engine/memory.rs for what lies there */
static void mode_memory(void)
{
	long page = 4096;
	char *base = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *strings = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memset(base, 'x', page);
	strcpy(base + page - 5, "tail");
	memset(base + 2 * page, 'r', page);
	mprotect(base + page, page, PROT_NONE);
	mprotect(base + 2 * page, page, PROT_READ);
	munmap(base + 3 * page, page);
	memset(strings, 's', 3 * page);
	munmap(strings + 3 * page, page);
	expect("own(0)", own(0, (long)base, (long)strings), 0);
	if (memcmp(base, "written", 7))
		fail("what was written", base[0], 'w');
	for (int i = 0; i < page; i++)
		expect("a read-only page", base[2 * page + i], 'r');
}

/*
 * descriptors: own(0) gives the sole descriptor of a file, own(1) one that closes on exec,
 * own(2) one that does not, own(3, 77) one at 77, own(4) an O_PATH one
 */
static void mode_descriptors(void)
{
	for (int i = 0; i < 300; i++) {
		int fd = own(0, 0, 0);
		int other;
		char path[32];

		if (fd < 0)
			fail("the sole descriptor", fd, 3);
		expect("flock", flock(fd, LOCK_EX), 0);
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		other = open(path, O_RDWR | O_CLOEXEC);
		close(fd);
		/* Only a copy elsewhere would still hold the lock. */
		expect("the lock after the last close", flock(other, LOCK_EX | LOCK_NB), 0);
		close(other);
	}
	expect("FD_CLOEXEC", fcntl(own(1, 0, 0), F_GETFD), FD_CLOEXEC);
	expect("FD_CLOEXEC", fcntl(own(2, 0, 0), F_GETFD), 0);
	expect("the number", own(3, 77, 0), 77);
	expect("the number, replaced", own(3, 77, 0), 77);
	expect("F_GETFD of 77", fcntl(77, F_GETFD), 0);
	for (int kind = 0; kind < 2; kind++) {
		expect("O_PATH", own(4, 0, kind), -1);
		expect("errno", errno, EBADF);
	}
}

/* answers: own(0, N) answers N; own(1, N) fails with errno N; own(2) is run natively */
static void mode_answers(void)
{
	for (long n = 0; n < 4096; n += 5)
		expect("a value", own(0, n, 0), n);
	expect("the largest value", own(0, INT64_MAX, 0), INT64_MAX);
	for (int n = 1; n < 134; n++) {
		/* Numbers without a meaning. */
		if (n == 41 || n == 58)
			continue;
		errno = 0;
		expect("a failure", own(1, n, 0), -1);
		expect("its errno", errno, n);
	}
	expect("continued", own(2, 0, 0), -1);
	expect("errno", errno, ENOSYS);
	expect("own(3)", own(3, 0, 0), -1);
	expect("errno of own(3)", errno, ENOSYS);
	expect("own(4)", own(4, 0, 0), -1);
	expect("errno of own(4)", errno, ENOSYS);
	echo(1, 1);
}

/* own NUMBER COUNT: own(NUMBER) so often; the last result is the exit status */
static void mode_own(void)
{
	long result = 0;

	for (long i = 0; i < number[1]; i++)
		result = own(number[0], i, 0);
	exit(result & 0xff);
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*run)(void); } modes[] = {
		{"echo", mode_echo}, {"hammer", mode_hammer}, {"storm", mode_storm},
		{"forks", mode_forks}, {"victims", mode_victims}, {"crowd", mode_crowd},
		{"memory", mode_memory}, {"crowd_and_stay", mode_crowd_and_stay},
		{"threads", mode_threads}, {"log", mode_log}, {"descriptors", mode_descriptors},
		{"answers", mode_answers}, {"own", mode_own},
	};

	for (int i = 2; i < argc && i < 10; i++)
		number[i - 2] = strtol(argv[i], NULL, 0);
	for (size_t i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++)
		if (!strcmp(argv[1], modes[i].name)) {
			modes[i].run();
			return 0;
		}
	fputs("usage: traps MODE [NUMBER...]\n", stderr);
	return 2;
}
