/* A round trip through a real daemon: everything that the C interface promises, on files of a 3FS mount.
 *
 * usage: c_client MOUNT-POINT [DIRECTORY-ON-IT]
 *
 * Makes its files in a directory of its own and removes them. Says what it checks; exits with 0 if all holds. */
#define _GNU_SOURCE
#include "check.h"
#include "hf3fs_usrbio.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MiB ((size_t)1 << 20)
#define IO ((size_t)65536)
#define ENTRIES 64
#define FILE_SIZE (8 * MiB + 1234)
#define FSYNC 0x8004680b /* flush, and make the length exact */

static const char *mount_point;
static char dir[512];

static const char *path_to(const char *name) {
  static char path[600];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  return path;
}

static struct timespec after_ms(long ms) {
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  time.tv_sec += ms / 1000;
  time.tv_nsec += ms % 1000 * 1000000;
  time.tv_sec += time.tv_nsec / 1000000000;
  time.tv_nsec %= 1000000000;
  return time;
}

/* The byte at an offset of every test file. */
static uint8_t pattern(size_t offset) { return (uint8_t)(offset * 31 + (offset >> 8) * 17 + (offset >> 16) + 5); }

static void fill(uint8_t *to, size_t offset, size_t len) {
  for (size_t i = 0; i < len; i++) to[i] = pattern(offset + i);
}

static void check_bytes(const uint8_t *got, size_t offset, size_t len) {
  for (size_t i = 0; i < len; i++) {
    if (got[i] == pattern(offset + i)) continue;
    fprintf(stderr, "byte %zu of the file is 0x%02x, not 0x%02x\n", offset + i, got[i], pattern(offset + i));
    exit(1);
  }
}

static void check_zero(const uint8_t *got, size_t len) {
  for (size_t i = 0; i < len; i++) CHECK(got[i], 0);
}

/* Waits for exactly n completions, at most 20 s. */
static void wait_for(const struct hf3fs_ior *ior, struct hf3fs_cqe *cqes, int n) {
  struct timespec deadline = after_ms(20000);
  CHECK(hf3fs_wait_for_ios(ior, cqes, n, n, &deadline), n);
}

/* One request, alone; its result. */
static int64_t one(const struct hf3fs_ior *ior, const struct hf3fs_iov *iov, size_t at, int fd, size_t off, size_t len) {
  struct hf3fs_cqe cqe = {0, 0, 0, NULL};
  int slot = hf3fs_prep_io(ior, iov, ior->for_read, iov->base + at, fd, off, len, &cqe);
  CHECK(slot >= 0, 1);
  CHECK(hf3fs_submit_ios(ior), 0);
  wait_for(ior, &cqe, 1);
  CHECK(cqe.index, slot);
  CHECK(cqe.userdata == &cqe, 1);
  return cqe.result;
}

static int open_registered(const char *name, int flags) {
  int fd = open(path_to(name), flags, 0644);
  if (fd < 0) perror(path_to(name));
  CHECK(fd >= 0, 1);
  int handle = hf3fs_reg_fd(fd, 0);
  CHECK(handle <= 0, 1);
  return fd;
}

static void close_registered(int fd) {
  hf3fs_dereg_fd(fd);
  CHECK(close(fd), 0);
}

static void make_exact(int fd) { CHECK(ioctl(fd, FSYNC), 0); }

static void detection(void) {
  char found[512], tiny[2] = "?";
  int len = hf3fs_extract_mount_point(found, sizeof found, dir);
  CHECK(len, (int)strlen(mount_point) + 1);
  CHECK(strcmp(found, mount_point), 0);
  CHECK(hf3fs_extract_mount_point(tiny, sizeof tiny, dir), len);
  CHECK(tiny[0], '?');
  CHECK(hf3fs_extract_mount_point(found, sizeof found, path_to("no-such-file")), -1);
  int fd = open(dir, O_RDONLY | O_DIRECTORY), null = open("/dev/null", O_RDWR);
  CHECK(hf3fs_is_hf3fs(fd), 1);
  CHECK(hf3fs_is_hf3fs(null), 0);
  CHECK(hf3fs_reg_fd(null, 0), EBADF);
  close(fd), close(null);
  puts("mount point and detection");
}

/* Writes FILE_SIZE bytes in batches, with a part of the Iov for each request in flight. */
static void write_file(const struct hf3fs_iov *iov) {
  struct hf3fs_ior ior;
  struct hf3fs_cqe cqes[ENTRIES];
  CHECK(hf3fs_iorcreate(&ior, mount_point, ENTRIES, false, 0, -1), 0);
  CHECK(hf3fs_io_entries(&ior), ENTRIES);
  int fd = open_registered("data", O_RDWR | O_CREAT | O_TRUNC);
  for (size_t off = 0; off < FILE_SIZE;) {
    int queued = 0;
    for (; queued < ENTRIES && off < FILE_SIZE; queued++) {
      size_t len = FILE_SIZE - off < IO ? FILE_SIZE - off : IO;
      uint8_t *at = iov->base + queued * IO;
      fill(at, off, len);
      CHECK(hf3fs_prep_io(&ior, iov, false, at, fd, off, len, (void *)len), queued);
      off += len;
    }
    if (queued == ENTRIES) CHECK(hf3fs_prep_io(&ior, iov, false, iov->base, fd, off, 1, NULL), -EAGAIN);
    CHECK(hf3fs_submit_ios(&ior), 0);
    wait_for(&ior, cqes, queued);
    for (int i = 0; i < queued; i++) CHECK(cqes[i].result, (int64_t)(size_t)cqes[i].userdata);
  }
  make_exact(fd);
  struct stat stat;
  CHECK(fstat(fd, &stat), 0);
  CHECK(stat.st_size, FILE_SIZE);
  close_registered(fd);
  hf3fs_iordestroy(&ior);

  uint8_t *bytes = malloc(FILE_SIZE);
  fd = open(path_to("data"), O_RDONLY);
  for (size_t done = 0; done < FILE_SIZE;) {
    ssize_t n = pread(fd, bytes + done, FILE_SIZE - done, (off_t)done);
    CHECK(n > 0, 1);
    done += (size_t)n;
  }
  check_bytes(bytes, 0, FILE_SIZE);
  close(fd);
  free(bytes);
  puts("writes through a ring, seen by POSIX reads");
}

/* Reads the file in batches whose offsets and lengths are odd, and checks every byte. */
static void read_file(const struct hf3fs_iov *iov, int priority) {
  struct hf3fs_ior ior;
  struct hf3fs_cqe cqes[ENTRIES];
  CHECK(hf3fs_iorcreate2(&ior, mount_point, ENTRIES, true, 0, priority, -1), 0);
  int fd = open_registered("data", O_RDONLY);
  size_t offsets[ENTRIES], lens[ENTRIES];
  for (size_t off = 0; off < FILE_SIZE;) {
    int queued = 0;
    for (; queued < ENTRIES && off < FILE_SIZE; queued++) {
      size_t len = IO - (size_t)(queued * 997 % 4096);
      if (len > FILE_SIZE - off) len = FILE_SIZE - off;
      offsets[queued] = off, lens[queued] = len;
      uint8_t *at = iov->base + queued * IO;
      memset(at, 0xee, len);
      int slot = hf3fs_prep_io(&ior, iov, true, at, fd, off, len, &offsets[queued]);
      CHECK(slot, queued);
      off += len;
    }
    CHECK(hf3fs_submit_ios(&ior), 0);
    for (int done = 0; done < queued;) {
      struct timespec deadline = after_ms(20000);
      int n = hf3fs_wait_for_ios(&ior, cqes, 7, 1, &deadline);
      CHECK(n > 0 && n <= 7, 1);
      for (int i = 0; i < n; i++) {
        size_t which = (size_t)((const size_t *)cqes[i].userdata - offsets);
        CHECK(cqes[i].result, lens[which]);
        check_bytes(iov->base + which * IO, offsets[which], lens[which]);
      }
      done += n;
    }
  }
  close_registered(fd);
  hf3fs_iordestroy(&ior);
  printf("reads through a ring of priority %d\n", priority);
}

static void depths(const struct hf3fs_iov *iov) {
  struct hf3fs_ior ior;
  struct hf3fs_cqe cqes[8];
  struct timespec deadline;
  int fd = open_registered("data", O_RDONLY);

  CHECK(hf3fs_iorcreate3(&ior, mount_point, 8, true, 4, 0, 0, -1), 0);
  for (int i = 0; i < 3; i++) CHECK(hf3fs_prep_io(&ior, iov, true, iov->base, fd, 0, 1, NULL), i);
  CHECK(hf3fs_submit_ios(&ior), 0);
  deadline = after_ms(200);
  CHECK(hf3fs_wait_for_ios(&ior, cqes, 8, 1, &deadline), 0); /* three are no batch of four */
  CHECK(hf3fs_prep_io(&ior, iov, true, iov->base, fd, 0, 1, NULL), 3);
  CHECK(hf3fs_submit_ios(&ior), 0);
  wait_for(&ior, cqes, 4);
  hf3fs_iordestroy(&ior);

  CHECK(hf3fs_iorcreate4(&ior, mount_point, 8, true, -4, 20, -1, 0), 0);
  for (int i = 0; i < 6; i++) CHECK(hf3fs_prep_io(&ior, iov, true, iov->base, fd, 0, 1, NULL), i);
  CHECK(hf3fs_submit_ios(&ior), 0);
  wait_for(&ior, cqes, 6); /* four at once, two after the timeout */
  hf3fs_iordestroy(&ior);

  CHECK(hf3fs_iorcreate3(&ior, mount_point, 8, true, -4, 0, 0, -1), 0);
  CHECK(one(&ior, iov, 0, fd, 0, 1), 1);
  hf3fs_iordestroy(&ior);
  CHECK(hf3fs_iorcreate(&ior, mount_point, 8, true, 9, -1), -EINVAL);
  close_registered(fd);
  puts("io_depth above, at and below 0");
}

static void holes_and_ends(const struct hf3fs_iov *iov) {
  struct hf3fs_ior ior, strict;
  uint8_t *bytes = malloc(MiB);
  int fd = open_registered("sparse", O_RDWR | O_CREAT | O_TRUNC);
  fill(bytes, 0, MiB);
  CHECK(pwrite(fd, bytes, MiB, 0), MiB);
  fill(bytes, 5 * MiB, MiB);
  CHECK(pwrite(fd, bytes, MiB, 5 * MiB), MiB);
  CHECK(fsync(fd), 0);
  make_exact(fd);
  free(bytes);
  CHECK(hf3fs_iorcreate(&ior, mount_point, 4, true, 0, -1), 0);
  CHECK(hf3fs_iorcreate4(&strict, mount_point, 4, true, 0, 0, -1, HF3FS_IOR_FORBID_READ_HOLES), 0);

  memset(iov->base, 0xee, 2 * MiB);
  CHECK(one(&ior, iov, 0, fd, 4 * MiB, 2 * MiB), 2 * MiB); /* a hole, then data */
  check_zero(iov->base, MiB);
  check_bytes(iov->base + MiB, 5 * MiB, MiB);
  CHECK(one(&strict, iov, 0, fd, 4 * MiB, 2 * MiB), -ENODATA);
  CHECK(one(&strict, iov, 0, fd, 5 * MiB, MiB), MiB);

  memset(iov->base, 0xee, 2 * MiB);
  CHECK(one(&ior, iov, 0, fd, 0, 2 * MiB), MiB); /* data, then a hole up to the end */
  check_bytes(iov->base, 0, MiB);
  CHECK(iov->base[MiB], 0xee);
  CHECK(one(&ior, iov, 0, fd, 2 * MiB, MiB), 0); /* all hole */
  CHECK(one(&strict, iov, 0, fd, 2 * MiB, MiB), 0);
  CHECK(iov->base[0], pattern(0));

  CHECK(one(&ior, iov, 0, fd, 6 * MiB - 10, 100), 10);
  CHECK(one(&ior, iov, 0, fd, 6 * MiB, 100), 0);
  CHECK(one(&ior, iov, 0, fd, 600 * MiB, 100), 0);
  hf3fs_iordestroy(&strict);
  hf3fs_iordestroy(&ior);
  close_registered(fd);
  puts("holes and ends of files");
}

static void results_of_errors(const struct hf3fs_iov *iov) {
  struct hf3fs_ior ior;
  struct hf3fs_iov blocks, unknown;
  static const uint8_t random_id[16] = {1, 2, 3, 4, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16};
  int fd = open_registered("data", O_RDONLY);
  CHECK(hf3fs_iorcreate(&ior, mount_point, 4, true, 0, -1), 0);
  CHECK(hf3fs_iovcreate(&blocks, mount_point, 4 * IO, IO, -1), 0);
  CHECK(one(&ior, &blocks, IO, fd, 0, IO), IO);
  CHECK(one(&ior, &blocks, IO - 1, fd, 0, 2), -EINVAL); /* across two blocks */
  CHECK(one(&ior, &blocks, 4 * IO - 1, fd, 0, 1), 1);
  CHECK(hf3fs_iovwrap(&unknown, iov->base, random_id, mount_point, iov->size, 0, -1), 0);
  CHECK(one(&ior, &unknown, 0, fd, 0, 1), -EINVAL);
  /* A wrong request does not spoil its neighbours. */
  struct hf3fs_cqe cqes[3];
  CHECK(hf3fs_prep_io(&ior, iov, true, iov->base, fd, 0, 100, NULL), 0);
  CHECK(hf3fs_prep_io(&ior, &unknown, true, iov->base, fd, 0, 100, NULL), 1);
  CHECK(hf3fs_prep_io(&ior, iov, true, iov->base + 100, fd, 100, 100, NULL), 2);
  CHECK(hf3fs_submit_ios(&ior), 0);
  wait_for(&ior, cqes, 3);
  for (int i = 0; i < 3; i++) CHECK(cqes[i].result, cqes[i].index == 1 ? -EINVAL : 100);
  check_bytes(iov->base, 0, 200);
  hf3fs_iovdestroy(&blocks);
  CHECK(hf3fs_iovcreate(&blocks, mount_point, IO, IO + 1, -1), -EINVAL);
  hf3fs_iordestroy(&ior);
  close_registered(fd);
  puts("wrong requests");
}

static void shared_buffers(void) {
  struct hf3fs_ior ior;
  struct hf3fs_iov made, opened, wrapped;
  int fd = open_registered("data", O_RDONLY);
  CHECK(hf3fs_iorcreate(&ior, mount_point, 4, true, 0, -1), 0);
  CHECK(hf3fs_iovcreate(&made, mount_point, IO, 0, -1), 0);
  CHECK(hf3fs_iovopen(&opened, (const uint8_t *)made.id, mount_point, IO, 0, -1), 0);
  CHECK(one(&ior, &opened, 0, fd, 7, IO), IO);
  check_bytes(made.base, 7, IO);
  CHECK(hf3fs_iovwrap(&wrapped, opened.base, (const uint8_t *)made.id, mount_point, IO, 0, -1), 0);
  CHECK(one(&ior, &wrapped, 100, fd, 1000, 100), 100);
  check_bytes(made.base + 100, 1000, 100);
  hf3fs_iovdestroy(&opened);
  CHECK(one(&ior, &made, 0, fd, 0, IO), IO); /* still registered */
  hf3fs_iovunlink(&made);
  CHECK(hf3fs_iovopen(&opened, (const uint8_t *)made.id, mount_point, IO, 0, -1), -ENOENT);
  CHECK(one(&ior, &made, 0, fd, 0, IO), IO);
  hf3fs_iovdestroy(&made);
  hf3fs_iordestroy(&ior);
  close_registered(fd);
  puts("opened and wrapped buffers");
}

static void links_and_holes(const struct hf3fs_iov *iov) {
  char target[600], link[600];
  struct stat of_target, of_link;
  snprintf(target, sizeof target, "%s", path_to("data"));
  snprintf(link, sizeof link, "%s", path_to("link"));
  CHECK(hf3fs_hardlink(target, link), 0);
  CHECK(stat(target, &of_target), 0);
  CHECK(stat(link, &of_link), 0);
  CHECK(of_target.st_ino == of_link.st_ino, 1);
  CHECK(hf3fs_hardlink(target, link), EEXIST);
  CHECK(hf3fs_hardlink(path_to("no-such-file"), link), ENOENT);
  CHECK(unlink(link), 0);

  /* st_blksize is the chunk size on 3FS; holes are whole chunks. */
  int fd = open_registered("data", O_RDWR);
  size_t chunk = (size_t)of_target.st_blksize < MiB ? MiB : (size_t)of_target.st_blksize;
  size_t start[2] = {0, 2 * chunk}, end[2] = {chunk, 3 * chunk};
  int n = 3 * chunk <= FILE_SIZE ? 2 : 1;
  CHECK(hf3fs_punchhole(fd, n, start, end, 0), 0);
  CHECK(hf3fs_punchhole(fd, 1001, start, end, 0), EINVAL);
  make_exact(fd);
  struct hf3fs_ior ior;
  CHECK(hf3fs_iorcreate(&ior, mount_point, 4, true, 0, -1), 0);
  CHECK(one(&ior, iov, 0, fd, 0, IO), 0);
  if (chunk + IO <= FILE_SIZE) {
    CHECK(one(&ior, iov, 0, fd, chunk, IO), IO);
    check_bytes(iov->base, chunk, IO);
  }
  hf3fs_iordestroy(&ior);
  close_registered(fd);
  puts("hard links and punched holes");
}

static void forked_child(const struct hf3fs_iov *iov) {
  struct hf3fs_ior ior, own;
  struct hf3fs_iov mine;
  struct hf3fs_cqe cqe;
  int fd = open_registered("sparse", O_RDONLY);
  CHECK(hf3fs_iorcreate(&ior, mount_point, 4, true, 0, -1), 0);
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    CHECK(hf3fs_prep_io(&ior, iov, true, iov->base, fd, 0, 1, NULL), -ECHILD);
    CHECK(hf3fs_submit_ios(&ior), -ECHILD);
    CHECK(hf3fs_wait_for_ios(&ior, &cqe, 1, 1, NULL), -ECHILD);
    hf3fs_iordestroy(&ior);
    CHECK(hf3fs_iorcreate(&own, mount_point, 4, true, 0, -1), 0);
    CHECK(hf3fs_iovcreate(&mine, mount_point, IO, 0, -1), 0);
    CHECK(one(&own, &mine, 0, fd, 5, 1000), 1000);
    check_bytes(mine.base, 5, 1000);
    hf3fs_iovdestroy(&mine);
    hf3fs_iordestroy(&own);
    _exit(0);
  }
  int status;
  CHECK(waitpid(child, &status, 0), child);
  CHECK(status, 0);
  CHECK(one(&ior, iov, 0, fd, 9, 1000), 1000); /* the child has taken nothing along */
  check_bytes(iov->base, 9, 1000);
  hf3fs_iordestroy(&ior);
  close_registered(fd);
  puts("fork");
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s MOUNT-POINT [DIRECTORY-ON-IT]\n", argv[0]);
    return 2;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  mount_point = argv[1];
  snprintf(dir, sizeof dir, "%s/usrbio-c-client.%d", argc > 2 ? argv[2] : mount_point, (int)getpid());
  CHECK(mkdir(dir, 0755), 0);

  struct hf3fs_iov iov;
  CHECK(hf3fs_iovcreate(&iov, mount_point, ENTRIES * IO, 0, -1), 0);
  detection();
  write_file(&iov);
  for (int priority = -1; priority <= 1; priority++) read_file(&iov, priority);
  depths(&iov);
  holes_and_ends(&iov);
  results_of_errors(&iov);
  shared_buffers();
  forked_child(&iov);
  links_and_holes(&iov);
  hf3fs_iovdestroy(&iov);

  CHECK(unlink(path_to("data")), 0);
  CHECK(unlink(path_to("sparse")), 0);
  CHECK(rmdir(dir), 0);
  puts("ok");
  return 0;
}
