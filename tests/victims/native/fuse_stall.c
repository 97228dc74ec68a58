// A program that runs from a file system of its own (FUSE), which stops answering once the program runs.
//
//   fuse_stall MOUNTPOINT open|close|read|deaf
//
// open: OPEN gets no answer. close: FLUSH, which each close(2) sends, gets none. read: READ gets none. deaf: requests are not
// even read any more. All but the last leave the caller in a wait that no signal ends. The file system is mounted in a
// mount namespace of its own, and ends with this program.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef SPIN
#define SPIN spins_on_fuse
#endif

enum { ROOT = FUSE_ROOT_ID, PROGRAM = 2 };

static char *content;
static size_t size;
static int device;

__attribute__((noinline)) void SPIN(void) {
	for (volatile uint64_t turn = 0;; turn++)
		;
}

static void die(const char *what) {
	perror(what);
	exit(1);
}

// Loads this program, with its section headers behind a megabyte of nothing: to run it, the kernel does not read them.
static void load(void) {
	int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct stat stat;
	if (file < 0 || fstat(file, &stat) != 0 || !(content = calloc(1, stat.st_size + (2 << 20))))
		die("open the program");
	if (pread(file, content, stat.st_size, 0) != stat.st_size)
		die("read the program");
	close(file);
	Elf64_Ehdr *header = (void *)content;
	size_t sections = (size_t)header->e_shnum * header->e_shentsize, begin = stat.st_size + (1 << 20);
	memcpy(content + begin, content + header->e_shoff, sections);
	header->e_shoff = begin;
	size = begin + sections;
}

static void answer(const struct fuse_in_header *request, int error, const void *body, size_t len) {
	static char buffer[256 << 10];
	struct fuse_out_header head = {.len = sizeof head + len, .error = error, .unique = request->unique};
	memcpy(buffer, &head, sizeof head);
	memcpy(buffer + sizeof head, body, len);
	if (write(device, buffer, head.len) < 0 && errno != ENOENT)
		die("answer a request");
}

static struct fuse_attr attributes(uint64_t node) {
	struct fuse_attr attr = {.ino = node, .nlink = 1, .blksize = 4096};
	attr.mode = node == ROOT ? S_IFDIR | 0755 : S_IFREG | 0755;
	attr.size = node == ROOT ? 0 : size;
	attr.ctime = attr.mtime = 1700000000;
	return attr;
}

// Whether a request gets an answer when the file system stalls.
static int is_answered(uint32_t opcode, const char *mode) {
	if (!strcmp(mode, "open"))
		return opcode != FUSE_OPEN;
	if (!strcmp(mode, "close"))
		return opcode != FUSE_FLUSH;
	return opcode != FUSE_READ;
}

static void serve(const struct fuse_in_header *request, const void *body) {
	switch (request->opcode) {
	case FUSE_INIT: {
		struct fuse_init_out out = {.major = 7, .minor = 31, .max_readahead = 1 << 16, .max_write = 1 << 16};
		return answer(request, 0, &out, sizeof out);
	}
	case FUSE_LOOKUP: {
		struct fuse_entry_out out = {.nodeid = PROGRAM, .attr = attributes(PROGRAM)};
		if (strcmp(body, "program"))
			return answer(request, -ENOENT, NULL, 0);
		return answer(request, 0, &out, sizeof out);
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out out = {.attr = attributes(request->nodeid)};
		return answer(request, 0, &out, sizeof out);
	}
	case FUSE_OPEN: {
		// What was read before stays, so that the program can go on.
		struct fuse_open_out out = {.fh = 1, .open_flags = FOPEN_KEEP_CACHE};
		return answer(request, 0, &out, sizeof out);
	}
	case FUSE_READ: {
		const struct fuse_read_in *in = body;
		size_t at = in->offset < size ? in->offset : size;
		size_t len = in->size < size - at ? in->size : size - at;
		return answer(request, 0, content + at, len);
	}
	case FUSE_FLUSH:
	case FUSE_RELEASE:
	case FUSE_ACCESS:
		return answer(request, 0, NULL, 0);
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	default:
		return answer(request, -ENOSYS, NULL, 0);
	}
}

int main(int count, char **arguments) {
	if (count == 2 && !strcmp(arguments[1], "spin")) {
		SPIN();
	}
	if (count != 3)
		return 2;
	const char *folder = arguments[1], *mode = arguments[2];
	load();
	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	char options[128];
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		die("a mount namespace");
	if (device < 0 || mount("stall", folder, "fuse", MS_NOSUID | MS_NODEV, options))
		die("mount");
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		char path[4096];
		snprintf(path, sizeof path, "%s/program", folder);
		execl(path, "program", "spin", NULL);
		die("start the program");
	}
	static char buffer[256 << 10];
	for (int is_stalled = 0;;) {
		struct pollfd ready = {.fd = device, .events = POLLIN};
		// The program runs when it has not asked for anything for a second.
		if (poll(&ready, 1, is_stalled ? -1 : 1000) == 0) {
			is_stalled = 1;
			puts("stalled");
			fflush(stdout);
			if (!strcmp(mode, "deaf"))
				pause();
			continue;
		}
		if (read(device, buffer, sizeof buffer) < 0) {
			if (errno == ENOENT || errno == EINTR)
				continue;
			die("read a request");
		}
		const struct fuse_in_header *request = (void *)buffer;
		if (!is_stalled || is_answered(request->opcode, mode))
			serve(request, buffer + sizeof *request);
	}
}
