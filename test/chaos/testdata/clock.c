/* Preloaded into redis-server, this sets its clock wrong by as many microseconds
 * as the file CHAOS_CLOCK holds (int64, this machine's order), from one moment to
 * the next. Redis reads the time of day in this one way only. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static volatile int64_t *offset;

__attribute__((constructor)) static void open_clock(void) {
	const char *path = getenv("CHAOS_CLOCK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	void *at = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (at != MAP_FAILED)
		offset = at;
}

int gettimeofday(struct timeval *restrict tv, void *restrict tz) {
	int failed = syscall(SYS_gettimeofday, tv, tz);
	if (!failed && tv && offset) {
		int64_t t = (int64_t)tv->tv_sec * 1000000 + tv->tv_usec + *offset;
		tv->tv_sec = t / 1000000;
		tv->tv_usec = t % 1000000;
	}
	return failed;
}
