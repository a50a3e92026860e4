/*
 * Memory to save.
 *
 *     heap hold MIB random|zero   fills so much, prints `ready PID`, closes stdout and sleeps
 *     heap fork MIB               fills so much and prints how long each of some forks took
 *     heap copy MIB FILE          fills so much and prints how long writing it to the file took
 *     heap read MIB               fills so much with zeros and prints how long a forked process took to look at all of it
 *     heap map MIB FILE           prints how long it took to map the file privately and touch each page
 *
 * Figures are nanoseconds, one a line. Ends by itself after ten minutes.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FORKS = 5, PAGE = 4096, PIECE = 1 << 20 };

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static char *fill(size_t bytes, int is_random)
{
	uint64_t seed = 88172645463325252u;
	uint64_t *memory;

	if (!bytes)
		return NULL;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	for (size_t at = 0; at < bytes / sizeof *memory; at++) {
		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		memory[at] = is_random ? seed : 0;
	}
	return (char *)memory;
}

static void time_forks(void)
{
	for (int count = 0; count < FORKS; count++) {
		long long begin = now();
		pid_t child = fork();

		if (child < 0)
			die("fork");
		if (!child)
			_exit(0);
		printf("%lld\n", now() - begin);
		waitpid(child, NULL, 0);
	}
}

static void time_copy(const char *memory, size_t bytes, const char *name)
{
	long long begin = now();
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0)
		die(name);
	for (size_t at = 0; at < bytes; at += PIECE)
		if (write(fd, memory + at, PIECE) != PIECE)
			die(name);
	printf("%lld\n", now() - begin);
}

static void time_read(const char *memory, size_t bytes)
{
	const uint64_t *words = (const uint64_t *)memory;
	uint64_t found = 0;
	long long begin;

	fflush(stdout);
	if (fork()) {
		wait(NULL);
		return;
	}
	begin = now();
	for (size_t at = 0; at < bytes / sizeof *words; at += 4)
		found |= words[at] | words[at + 1] | words[at + 2] | words[at + 3];
	printf("%lld\n", now() - begin);
	exit(found != 0);
}

static void time_map(size_t bytes, const char *name)
{
	long long begin = now();
	int fd = open(name, O_RDONLY);
	volatile char *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	if (mapped == MAP_FAILED)
		die(name);
	for (size_t at = 0; at < bytes; at += PAGE)
		(void)mapped[at];
	printf("%lld\n", now() - begin);
}

int main(int argc, char **argv)
{
	size_t bytes;

	if (argc < 3)
		return 2;
	bytes = strtoul(argv[2], NULL, 10) << 20;
	if (!strcmp(argv[1], "fork")) {
		fill(bytes, 1);
		time_forks();
	} else if (!strcmp(argv[1], "copy") && argc > 3) {
		time_copy(fill(bytes, 1), bytes, argv[3]);
	} else if (!strcmp(argv[1], "read")) {
		time_read(fill(bytes, 0), bytes);
	} else if (!strcmp(argv[1], "map") && argc > 3) {
		time_map(bytes, argv[3]);
	} else if (!strcmp(argv[1], "hold") && argc > 3) {
		fill(bytes, !strcmp(argv[3], "random"));
		printf("ready %d\n", (int)getpid());
		/* A pipe to somebody else is nothing that every peer can save. */
		fclose(stdout);
		/* CRIU cuts short what its guests sleep. */
		for (unsigned left = 600; left;)
			left = sleep(left);
	} else {
		return 2;
	}
	return 0;
}
