/*
 * Stops processes as kill(1) does, or lets them go on, and waits until they have.
 *
 *     halt stop|go PID...
 *
 * `stop` sends SIGSTOP to one after another and returns when every thread of them is in state T;
 * `go` sends SIGCONT and returns when none is.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void die(const char *what, const char *whose)
{
	fprintf(stderr, "halt: %s %s: %s\n", what, whose, strerror(errno));
	exit(2);
}

/* The letter behind the name in parentheses, which may itself hold some (proc_pid_stat(5)). */
static int is_stopped(const char *pid, const char *thread)
{
	char path[64], text[512], *end;
	ssize_t got;
	int file;

	snprintf(path, sizeof(path), "/proc/%s/task/%s/stat", pid, thread);
	file = open(path, O_RDONLY | O_CLOEXEC);
	got = file < 0 ? -1 : read(file, text, sizeof(text) - 1);
	if (got < 0)
		die("cannot read the state of", thread);
	close(file);
	text[got] = 0;
	end = strrchr(text, ')');
	return end && end[1] == ' ' && end[2] == 'T';
}

static void wait_for(const char *pid, int stopped)
{
	char path[32];
	struct dirent *entry;
	DIR *threads;

	snprintf(path, sizeof(path), "/proc/%s/task", pid);
	threads = opendir(path);
	if (!threads)
		die("cannot list the threads of", pid);
	while ((entry = readdir(threads)))
		if (entry->d_name[0] != '.')
			while (is_stopped(pid, entry->d_name) != stopped)
				sched_yield();
	closedir(threads);
}

int main(int argc, char **argv)
{
	int stop = argc > 2 && !strcmp(argv[1], "stop");

	if (argc < 3 || (!stop && strcmp(argv[1], "go"))) {
		fprintf(stderr, "usage: halt stop|go PID...\n");
		return 2;
	}
	for (int i = 2; i < argc; i++)
		if (kill(atoi(argv[i]), stop ? SIGSTOP : SIGCONT))
			die("cannot signal", argv[i]);
	for (int i = 2; i < argc; i++)
		wait_for(argv[i], stop);
	return 0;
}
