/*
 * Guest: makes many small files, as an installer of packages does.
 *
 *     scatter DIRECTORY COUNT
 *
 * Ten files to a package: each is made under a name of its own, written, given its mode and times, and put in its
 * place by rename(2); each package gets a link in .bin. Any failure ends it with status 2.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char content[4096];

static void check(int failed, const char *what)
{
	if (failed) {
		perror(what);
		exit(2);
	}
}

static void make_file(int number)
{
	const struct timespec times[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1000000000 } };
	size_t size = 200 + (size_t)(number * 37) % (sizeof(content) - 200);
	char name[64], place[64];
	int fd;

	snprintf(name, sizeof(name), "package-%d/file-%d.js.new", number / 10, number % 10);
	snprintf(place, sizeof(place), "package-%d/file-%d.js", number / 10, number % 10);
	fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	check(fd < 0, name);
	check(write(fd, content, size) != (ssize_t)size, name);
	check(fchmod(fd, 0644), name);
	check(futimens(fd, times), name);
	check(close(fd), name);
	check(rename(name, place), place);
}

static void make_package(int number)
{
	char name[64], target[64];
	struct stat stat;

	snprintf(name, sizeof(name), "package-%d", number);
	check(mkdir(name, 0777), name);
	snprintf(name, sizeof(name), ".bin/package-%d", number);
	snprintf(target, sizeof(target), "../package-%d/file-0.js", number);
	check(symlink(target, name), name);
	check(lstat(name, &stat), name);
}

int main(int argc, char **argv)
{
	int count = argc == 3 ? atoi(argv[2]) : 0;

	if (count <= 0) {
		fprintf(stderr, "usage: scatter DIRECTORY COUNT\n");
		return 2;
	}
	memset(content, 'x', sizeof(content));
	check(mkdir(argv[1], 0777) || chdir(argv[1]) || mkdir(".bin", 0777), argv[1]);
	for (int number = 0; number < count; number++) {
		if (number % 10 == 0)
			make_package(number / 10);
		make_file(number);
	}
	return 0;
}
