/*
 * Prints what calls say of files whose owners, modes and devices the program has set, and what it may not set.
 * In an empty directory of the program's own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static void show(const char *what, const struct stat *st)
{
	printf("%s: %u:%u %o %u:%u %d\n", what, st->st_uid, st->st_gid, st->st_mode,
	       S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode) ? major(st->st_rdev) : 0,
	       S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode) ? minor(st->st_rdev) : 0,
	       S_ISREG(st->st_mode) ? (int)st->st_size : 0);
}

static void say(const char *what, long result)
{
	printf("%s: %s\n", what, result < 0 ? strerrorname_np(errno) : "done");
}
#define SAY(...) say(#__VA_ARGS__, (errno = 0, __VA_ARGS__))

/* Every way to look at one file. */
static void look(const char *name)
{
	struct stat st;
	struct statx stx;
	char path[4096], here[2048];
	int fd;

	printf("-- %s\n", name);
#ifdef SYS_stat
	if (!syscall(SYS_stat, name, &st))
		show("stat", &st);
	if (!syscall(SYS_lstat, name, &st))
		show("lstat", &st);
#endif
	if (!fstatat(AT_FDCWD, name, &st, 0))
		show("fstatat", &st);
	if (!getcwd(here, sizeof here))
		exit(2);
	snprintf(path, sizeof path, "%s/%s", here, name);
	if (!fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW))
		show("absolute", &st);
	snprintf(path, sizeof path, "down/../%s", name);
	if (!fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW))
		show("with ..", &st);
	snprintf(path, sizeof path, "here/%s", name);
	if (!fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW))
		show("over a link", &st);
	snprintf(path, sizeof path, "/proc/self/cwd/%s", name);
	if (!fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW))
		show("by /proc", &st);
	fd = open(name, O_PATH | O_NOFOLLOW);
	if (fd >= 0 && !fstat(fd, &st))
		show("fstat", &st);
	if (fd >= 0 && !fstatat(fd, "", &st, AT_EMPTY_PATH))
		show("empty", &st);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (fd >= 0 && !stat(path, &st))
		show("descriptor", &st);
	if (!syscall(SYS_statx, AT_FDCWD, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &stx))
		printf("statx: %u:%u %o %u:%u\n", stx.stx_uid, stx.stx_gid, stx.stx_mode,
		       S_ISLNK(stx.stx_mode) ? 0 : stx.stx_rdev_major, S_ISLNK(stx.stx_mode) ? 0 : stx.stx_rdev_minor);
	close(fd);
}

int main(void)
{
	char value[64], list[256], here[2048];
	struct stat st;
	long length;
	int fd;

	umask(022);
	if (!getcwd(here, sizeof here) || mkdir("down", 0755) || symlink(here, "here"))
		return 2;
	fd = open("file", O_CREAT | O_EXCL | O_RDWR, 0644);
	if (fd < 0 || write(fd, "text", 4) != 4)
		return 2;
	symlink("file", "link");
	mkfifo("pipe", 0600);
	look("file");
	SAY(chown("file", 12, 34));
	SAY(chmod("file", 06755));
	look("file");
	SAY(chown("link", -1, 35));
	look("file");
	SAY(fchmod(fd, 04711));
	SAY(fchown(fd, 0, -1));
	look("file");
	SAY(lchown("link", 5, 6));
	look("link");
	SAY(chown("pipe", 7, 8));
	look("pipe");
	SAY(chown("down", 9, 10));
	SAY(chmod("down", 02570));
	look("down");
	SAY(mknod("null", S_IFCHR | 0666, makedev(1, 3)));
	SAY(mknod("disk", S_IFBLK | 0660, makedev(259, 70000)));
	SAY(mknod("null", S_IFCHR | 0666, makedev(1, 3)));
	look("null");
	SAY(chown("disk", 0, 6));
	look("disk");
	SAY(rename("file", "down/moved"));
	SAY(link("down/moved", "again"));
	SAY(stat("again", &st));
	show("moved", &st);
	SAY(chmod("again", 0));
	SAY(open("again", O_RDWR));
	SAY(access("again", R_OK | W_OK));
	SAY(access("again", X_OK));
	look("again");
	SAY(unlink("again"));
	SAY(open("again", O_CREAT | O_EXCL | O_WRONLY, 0600));
	look("again");
	SAY(chown("missing", 1, 1));
	SAY(chmod("missing", 04755));
	SAY(chown("again/below", 1, 1));
	SAY(mknod("missing/null", S_IFCHR | 0666, makedev(1, 3)));
	SAY(fchown(1000, 1, 1));
	SAY(chmod("again", 0600));
	SAY(setxattr("again", "user.mine", "1", 1, 0));
	SAY(setxattr("again", "trusted.mine", "abc", 3, XATTR_REPLACE));
	SAY(setxattr("again", "trusted.mine", "abc", 3, XATTR_CREATE));
	SAY(setxattr("again", "trusted.mine", "abcd", 4, XATTR_CREATE));
	SAY(chown("again", 3, 3));
	length = getxattr("again", "trusted.mine", value, sizeof value);
	printf("%ld %.3s %ld\n", length, value, getxattr("again", "trusted.mine", NULL, 0));
	SAY(getxattr("again", "trusted.mine", value, 2));
	length = listxattr("again", list, sizeof list);
	for (char *at = list; at < list + length; at += strlen(at) + 1)
		if (!strncmp(at, "user.", 5) || !strncmp(at, "trusted.", 8))
			printf("has %s\n", at);
	SAY(removexattr("again", "trusted.mine"));
	SAY(getxattr("again", "trusted.mine", value, sizeof value));
	return 0;
}
