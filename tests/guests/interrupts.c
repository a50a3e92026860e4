// cc: -pthread
/*
 * Waits in syslog(2) READ, which the sandbox serves, while signals arrive.
 *
 *     interrupts MODE [THREADS [DIRECTED]]
 *
 * THREADS: alone; blocked (another thread, which takes no signals); idle (another one, which could).
 * DIRECTED: thread or process, where the signals go.
 * Exits with 0 when the wait ended as it should have; says otherwise what was wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define sigev_tid _sigev_un._tid

enum { READ = 2, READ_ALL = 3, SIZE_UNREAD = 9, SIZE_BUFFER = 10 };

static const char *threads = "alone", *directed = "thread";
static char text[1 << 17];
static volatile sig_atomic_t alarms, others, other_runs;
static volatile int *shared;

static void fail(const char *what, long got)
{
	fprintf(stderr, "interrupts: %s: %ld (errno %d)\n", what, got, errno);
	_exit(1);
}

static void check(const char *what, int holds, long got)
{
	if (!holds)
		fail(what, got);
}

static long wait_for_text(void)
{
	errno = 0;
	return syscall(SYS_syslog, READ, text, sizeof text);
}

static void drain(void)
{
	/* The last line for now: how the program was started. */
	do
		syscall(SYS_syslog, READ_ALL, text, sizeof text - 1);
	while (!strstr(text, "started: "));
	while (syscall(SYS_syslog, SIZE_UNREAD, NULL, 0) > 0)
		if (wait_for_text() <= 0)
			fail("drain", 0);
}

static timer_t timer(int signal)
{
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal};
	timer_t timer;

	if (!strcmp(directed, "thread")) {
		event.sigev_notify = SIGEV_THREAD_ID;
		event.sigev_tid = gettid();
	}
	if (timer_create(CLOCK_MONOTONIC, &event, &timer))
		fail("timer_create", -1);
	return timer;
}

static void set(timer_t timer, long first, long interval)
{
	struct itimerspec times = {
		.it_value = {first / 1000, first % 1000 * 1000000},
		.it_interval = {interval / 1000, interval % 1000 * 1000000},
	};

	timer_settime(timer, 0, &times, NULL);
}

static void on_alarm(int signal)
{
	(void)signal;
	shared[1] = ++alarms;
}

static void on_other(int signal)
{
	(void)signal;
	others++;
}

static void handle(int signal, void (*handler)(int), int flags)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};

	sigaction(signal, &action, NULL);
}

static void *other_thread(void *argument)
{
	(void)argument;
	other_runs = 1;
	for (;;)
		pause();
	return NULL;
}

static void start_other_thread(void)
{
	pthread_t thread;
	sigset_t all, before;

	if (!strcmp(threads, "alone"))
		return;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, strcmp(threads, "idle") ? &all : NULL, &before);
	if (pthread_create(&thread, NULL, other_thread, NULL))
		fail("pthread_create", -1);
	if (strcmp(threads, "idle"))
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	/* A thread begins with all signals blocked, and takes what is pending when it unblocks them. */
	while (!other_runs)
		usleep(100);
}

static char state_of(pid_t process, pid_t thread)
{
	char path[64], stat[512];

	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", process, thread);
	FILE *file = fopen(path, "r");
	size_t count = fread(stat, 1, sizeof stat - 1, file);

	fclose(file);
	stat[count] = 0;
	return strrchr(stat, ')')[2];
}

/* Waits until the thread is asleep in its call. */
static void wait_until_asleep(pid_t process, pid_t thread)
{
	while (!shared[0])
		usleep(100);
	while (!strchr("DS", state_of(process, thread)))
		;
}

static pid_t waits_in_process, waits_in_thread;

/* A child that sends what the calling thread waits for: 0 in the child. */
static pid_t somebody_else(void)
{
	waits_in_process = getpid();
	waits_in_thread = gettid();
	return fork();
}

/* It comes in the wait and not before, however late that begins. */
static void send_once_asleep(int signal)
{
	wait_until_asleep(waits_in_process, waits_in_thread);
	if (!strcmp(directed, "thread"))
		syscall(SYS_tgkill, waits_in_process, waits_in_thread, signal);
	else
		kill(waits_in_process, signal);
}

/* A handler without SA_RESTART ends the wait with EINTR. */
static void mode_interrupted(void)
{
	handle(SIGUSR1, on_other, 0);
	if (!somebody_else()) {
		send_once_asleep(SIGUSR1);
		_exit(0);
	}
	shared[0] = 1;
	check("READ", wait_for_text() == -1 && errno == EINTR, errno);
	/* The other thread takes the signal when it comes to run. */
	for (int i = 0; i < 100000 && others != 1; i++)
		usleep(100);
	check("handled", others == 1, others);
}

/* One with SA_RESTART goes on waiting, time after time. */
static void mode_restarted(void)
{
	handle(SIGALRM, on_alarm, SA_RESTART);
	handle(SIGUSR1, on_other, 0);
	if (!somebody_else()) {
		for (int i = 1; i <= 4; i++) {
			send_once_asleep(SIGALRM);
			while (shared[1] < i)
				usleep(100);
		}
		send_once_asleep(SIGUSR1);
		_exit(0);
	}
	shared[0] = 1;
	check("READ", wait_for_text() == -1 && errno == EINTR, errno);
	check("handled with SA_RESTART", alarms == 4, alarms);
	check("handled without", others == 1, others);
}

/* Signals that nobody handles do not end it. */
static void mode_ignored(void)
{
	sigset_t blocked;
	pid_t waiting = getpid();

	handle(SIGUSR2, SIG_IGN, 0);
	handle(SIGUSR1, on_other, 0);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGHUP);
	sigaddset(&blocked, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	shared[1] = 0;
	if (!somebody_else()) {
		wait_until_asleep(waiting, waiting);
		for (int i = 0; i < 10; i++) {
			kill(waiting, SIGUSR2);
			kill(waiting, SIGCHLD);
			kill(waiting, SIGURG);
			kill(waiting, SIGHUP);
			kill(waiting, SIGRTMIN);
			syscall(SYS_tgkill, waiting, waiting, SIGUSR2);
			syscall(SYS_tgkill, waiting, waiting, SIGHUP);
			usleep(10000);
			shared[1]++;
		}
		kill(waiting, SIGUSR1);
		_exit(0);
	}
	shared[0] = 1;
	check("READ", wait_for_text() == -1 && errno == EINTR, errno);
	check("woken too early", shared[1] == 10, shared[1]);
	check("handled", others == 1, others);
}

/* Text ends it too. */
static void mode_text(void)
{
	if (!fork()) {
		usleep(50000);
		syscall(SYS_io_uring_setup, 8, text);
		_exit(0);
	}
	long count = wait_for_text();
	check("READ", count > 0 && memmem(text, count, "io_uring_setup", 14), count);
}

/* Death ends it, and others are served on. */
static void mode_killed(void)
{
	for (int i = 0; i < 20; i++) {
		int status;

		shared[0] = 0;
		pid_t child = fork();
		if (!child) {
			shared[0] = 1;
			wait_for_text();
			_exit(1);
		}
		wait_until_asleep(child, child);
		kill(child, SIGKILL);
		waitpid(child, &status, 0);
		check("status", status == SIGKILL, status);
		check("SIZE_BUFFER", syscall(SYS_syslog, SIZE_BUFFER, NULL, 0) > 0, 0);
	}
}

static void *reading_thread(void *argument)
{
	shared[1] = gettid();
	shared[0] = 1;
	wait_for_text();
	fail("a thread of a process that ends has returned", (long)argument);
	return NULL;
}

static void on_counted(int signal)
{
	(void)signal;
	shared[1]++;
}

/* Tells whether a signal that has a handler finds a waiting process killable: it is D until the
 * handler runs. */
static void mode_killable(void)
{
	int seen = 0;
	pid_t child = fork();

	if (!child) {
		handle(SIGUSR1, on_counted, SA_RESTART);
		shared[0] = 1;
		wait_for_text();
		_exit(1);
	}
	wait_until_asleep(child, child);
	for (int i = 1; i <= 3000 && !seen; i++) {
		kill(child, SIGUSR1);
		while (shared[1] < i)
			seen += state_of(child, child) == 'D';
		wait_until_asleep(child, child);
	}
	puts(seen ? "killable" : "interruptible");
	kill(child, SIGKILL);
}

/* So does the end of the process. */
static void mode_exit(void)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, reading_thread, NULL))
		fail("pthread_create", -1);
	while (!shared[0])
		usleep(100);
	wait_until_asleep(getpid(), shared[1]);
}

static void *thread_until_signal(void *argument)
{
	(void)argument;
	shared[1] = gettid();
	shared[0] = 1;
	check("READ", wait_for_text() == -1 && errno == EINTR, errno);
	/* The other thread takes the signal when it comes to run. */
	for (int i = 0; i < 100000 && others != 1; i++)
		usleep(100);
	check("handled", others == 1, others);
	_exit(7);
}

/* A stop of the process and its end restart the call, whichever thread takes the signal. */
static void mode_stopped(void)
{
	int status;
	pid_t child = fork();

	if (!child) {
		pthread_t thread;

		handle(SIGUSR1, on_other, 0);
		if (!strcmp(threads, "alone"))
			thread_until_signal(NULL);
		if (pthread_create(&thread, NULL, thread_until_signal, NULL))
			fail("pthread_create", -1);
		other_thread(NULL);
	}
	while (!shared[0])
		usleep(100);
	for (int i = 0; i < 3; i++) {
		wait_until_asleep(child, shared[1]);
		kill(child, SIGSTOP);
		waitpid(child, &status, WUNTRACED);
		check("stopped", WIFSTOPPED(status), status);
		kill(child, SIGCONT);
		waitpid(child, &status, WCONTINUED);
		check("continued", WIFCONTINUED(status), status);
	}
	syscall(SYS_tgkill, child, shared[1], SIGUSR1);
	waitpid(child, &status, 0);
	check("status", WIFEXITED(status) && WEXITSTATUS(status) == 7, status);
}

static void *stressed_thread(void *argument)
{
	(void)argument;
	while (alarms < 300) {
		long count = wait_for_text();

		check("READ", count >= 0 || errno == EINTR, count);
	}
	return NULL;
}

/* Whoever takes the signals, a call ends with text or with EINTR, never with another error. */
static void mode_stress(void)
{
	pthread_t stressed[4];

	handle(SIGALRM, on_alarm, SA_RESTART);
	for (int i = 0; i < 4; i++)
		if (pthread_create(&stressed[i], NULL, stressed_thread, NULL))
			fail("pthread_create", -1);
	set(timer(SIGALRM), 3, 3);
	handle(SIGUSR1, on_other, 0);
	while (alarms < 300)
		pause();
	for (int i = 0; i < 4; i++)
		while (pthread_tryjoin_np(stressed[i], NULL)) {
			pthread_kill(stressed[i], SIGUSR1);
			usleep(1000);
		}
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*run)(void); } modes[] = {
		{"interrupted", mode_interrupted}, {"restarted", mode_restarted},
		{"ignored", mode_ignored}, {"text", mode_text}, {"killed", mode_killed},
		{"exit", mode_exit}, {"killable", mode_killable}, {"stopped", mode_stopped},
		{"stress", mode_stress},
	};

	if (argc > 2)
		threads = argv[2];
	if (argc > 3)
		directed = argv[3];
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	start_other_thread();
	drain();
	for (size_t i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++)
		if (!strcmp(argv[1], modes[i].name)) {
			modes[i].run();
			return 0;
		}
	fputs("usage: interrupts MODE [THREADS [DIRECTED]]\n", stderr);
	return 2;
}
