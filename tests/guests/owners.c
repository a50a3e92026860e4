/*
 * Prints what chown(2) and its kin answer, to whomever a file is given.
 *
 *     owners FILE LINK DANGLING
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void tell(const char *what, long owner, long group, long result)
{
	printf("%s %ld:%ld: %s\n", what, owner, group, result ? strerrorname_np(errno) : "done");
}

#define TELL(owner, group, ...) tell(#__VA_ARGS__, owner, group, (errno = 0, __VA_ARGS__))

static void give(const char **argv, long owner, long group)
{
	int file = open(argv[1], O_RDONLY), handle = open(argv[1], O_PATH), here = open(".", O_DIRECTORY);
	TELL(owner, group, chown(argv[1], owner, group));
	TELL(owner, group, chown(argv[2], owner, group));
	TELL(owner, group, lchown(argv[2], owner, group));
	TELL(owner, group, chown(argv[3], owner, group));
	TELL(owner, group, lchown(argv[3], owner, group));
	TELL(owner, group, chown("missing/file", owner, group));
	TELL(owner, group, chown("file/below", owner, group));
	TELL(owner, group, chown("", owner, group));
	TELL(owner, group, chown((const char *)16, owner, group));
	TELL(owner, group, fchown(file, owner, group));
	TELL(owner, group, fchown(handle, owner, group));
	TELL(owner, group, fchown(1000, owner, group));
	TELL(owner, group, fchownat(here, argv[1], owner, group, 0));
	TELL(owner, group, fchownat(AT_FDCWD, argv[2], owner, group, AT_SYMLINK_NOFOLLOW));
	TELL(owner, group, fchownat(file, "", owner, group, AT_EMPTY_PATH));
	TELL(owner, group, fchownat(file, "below", owner, group, 0));
	TELL(owner, group, fchownat(1000, argv[1], owner, group, 0));
	TELL(owner, group, fchownat(AT_FDCWD, argv[1], owner, group, 1 << 20));
	close(file);
	close(handle);
	close(here);
}

int main(int argc, const char **argv)
{
	if (argc != 4)
		return 2;
	long uid = getuid(), gid = getgid();
	give(argv, uid, gid);
	give(argv, -1, -1);
	give(argv, -1, gid);
	if (uid == 0)
		return 0;
	give(argv, 0, 0);
	give(argv, -1, 0);
	give(argv, uid + 1, -1);
	give(argv, 65534, 65534);
	return 0;
}
