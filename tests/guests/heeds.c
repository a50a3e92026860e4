/*
 * Tells of every SIGUSR1 that it gets, exactly as often as it gets one; ends with 6 at SIGTERM.
 *
 *     heeds count         writes the number so far into the file `count`; makes `up` first
 *     heeds pids N        it and N children print their numbers; `ready` from each first
 *
 * A shell will not do: bash 5.2 gives up a trap's command when the time of a `read -t` is over, and
 * fails to parse it while it expands a process substitution.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t heard, over;

static void hear(int signal)
{
	if (signal == SIGTERM)
		over = 1;
	else
		heard++;
}

static void put(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (file < 0 || write(file, text, strlen(text)) < 0 || close(file))
		exit(2);
}

int main(int argc, char **argv)
{
	int counts = argc == 2 && !strcmp(argv[1], "count"), told = 0;
	if (!counts && (argc != 3 || strcmp(argv[1], "pids")))
		return 2;
	struct sigaction action = { .sa_handler = hear };
	sigset_t blocked, before;
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigaddset(&blocked, SIGTERM);
	sigprocmask(SIG_BLOCK, &blocked, &before);

	for (int left = counts ? 0 : atoi(argv[2]); left > 0; left--)
		if (fork() == 0)
			break;
	if (counts)
		put("up", "");
	else
		dprintf(1, "ready\n");
	while (!over) {
		for (; told < heard; told++) {
			char text[16];
			snprintf(text, sizeof text, "%d\n", counts ? told + 1 : getpid());
			if (counts)
				put("count", text);
			else if (write(1, text, strlen(text)) < 0)
				return 2;
		}
		sigsuspend(&before);
	}
	return 6;
}
