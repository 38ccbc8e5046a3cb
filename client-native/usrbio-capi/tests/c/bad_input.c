/* Every function with bad input: the number that 3FS answers, and no crash. Needs no daemon: a temporary directory
 * stands for the mount, and this program's ioctl() tells the library that its files are on 3FS.
 *
 * usage: bad_input DIRECTORY */
#define _GNU_SOURCE
#include "check.h"
#include "hf3fs_usrbio.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int pretend_3fs;

/* The library's calls come here too: the executable's symbols win (-rdynamic). */
int ioctl(int fd, unsigned long request, ...) {
  va_list args;
  va_start(args, request);
  void *arg = va_arg(args, void *);
  va_end(args);
  if (pretend_3fs && request == 0x80046802 && fcntl(fd, F_GETFD) >= 0) {
    *(uint32_t *)arg = HF3FS_SUPER_MAGIC;
    return 0;
  }
  return (int)syscall(SYS_ioctl, fd, request, arg);
}

static char mount_point[256], iovs[300], semaphore[64];
static const uint8_t no_id[16];

static int links(void) {
  int count = 0;
  DIR *dir = opendir(iovs);
  for (struct dirent *entry; (entry = readdir(dir));) count += entry->d_name[0] != '.';
  closedir(dir);
  return count;
}

static struct timespec soon(long ms) {
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  time.tv_nsec += ms * 1000000;
  time.tv_sec += time.tv_nsec / 1000000000;
  time.tv_nsec %= 1000000000;
  return time;
}

static void make_mount(const char *dir) {
  char path[400], target[128];
  snprintf(mount_point, sizeof mount_point, "%s", dir);
  snprintf(path, sizeof path, "%s/3fs-virt", dir);
  CHECK(mkdir(path, 0755), 0);
  snprintf(iovs, sizeof iovs, "%s/3fs-virt/iovs", dir);
  CHECK(mkdir(iovs, 0755), 0);
  snprintf(semaphore, sizeof semaphore, "/usrbio-c-test.%d", (int)getpid());
  CHECK(sem_open(semaphore, O_CREAT | O_EXCL, 0600, 0) != SEM_FAILED, 1);
  snprintf(target, sizeof target, "/dev/shm/sem.%s", semaphore + 1);
  static const char *const names[] = {"submit-ios", "submit-ios.ph", "submit-ios.pl"};
  for (int i = 0; i < 3; i++) {
    snprintf(path, sizeof path, "%s/%s", iovs, names[i]);
    CHECK(symlink(target, path), 0);
  }
}

static void layouts(void) {
  CHECK(sizeof(struct hf3fs_iov), 312);
  CHECK(offsetof(struct hf3fs_iov, id), 16);
  CHECK(offsetof(struct hf3fs_iov, mount_point), 32);
  CHECK(offsetof(struct hf3fs_iov, size), 288);
  CHECK(offsetof(struct hf3fs_iov, numa), 304);
  CHECK(sizeof(struct hf3fs_ior), 600);
  CHECK(offsetof(struct hf3fs_ior, iorh), 312);
  CHECK(offsetof(struct hf3fs_ior, mount_point), 320);
  CHECK(offsetof(struct hf3fs_ior, for_read), 576);
  CHECK(offsetof(struct hf3fs_ior, io_depth), 580);
  CHECK(offsetof(struct hf3fs_ior, timeout), 588);
  CHECK(offsetof(struct hf3fs_ior, flags), 592);
  CHECK(sizeof(struct hf3fs_cqe), 24);
  CHECK(offsetof(struct hf3fs_cqe, result), 8);
  CHECK(offsetof(struct hf3fs_cqe, userdata), 16);
  CHECK(hf3fs_ior_size(1), 4336);
  CHECK(hf3fs_ior_size(1000), 100240);
  CHECK(hf3fs_ior_size(65536), 6295696);
  CHECK(hf3fs_ior_size(-1), 0);
}

static void detection(void) {
  char buf[300];
  pretend_3fs = 0;
  CHECK(hf3fs_is_hf3fs(-1), 0);
  CHECK(hf3fs_is_hf3fs(12345), 0);
  CHECK(hf3fs_is_hf3fs(0), 0);
  CHECK(hf3fs_extract_mount_point(buf, sizeof buf, "/no/such/path"), -1);
  CHECK(hf3fs_extract_mount_point(buf, sizeof buf, "/proc/self"), -1);
  CHECK(hf3fs_extract_mount_point(buf, sizeof buf, NULL), -1);
  CHECK(hf3fs_extract_mount_point(NULL, 0, "/"), -1);
}

static void iov_functions(void) {
  struct hf3fs_iov iov, other;
  char long_path[300];
  memset(long_path, 'x', sizeof long_path - 1);
  long_path[sizeof long_path - 1] = 0;

  CHECK(hf3fs_iovcreate(NULL, mount_point, 4096, 0, -1), -EINVAL);
  CHECK(hf3fs_iovcreate(&iov, NULL, 4096, 0, -1), -EINVAL);
  CHECK(hf3fs_iovcreate(&iov, long_path, 4096, 0, -1), -EINVAL);
  CHECK(hf3fs_iovcreate(&iov, mount_point, 0, 0, -1), -EINVAL);
  CHECK(hf3fs_iovcreate(&iov, mount_point, 4096, 4097, -1), -EINVAL);
  CHECK(hf3fs_iovcreate(&iov, "/no/such/mount", 4096, 0, -1), -ENOENT);
  CHECK(hf3fs_iovcreate(&iov, "", 4096, 0, -1), -ENOENT);
  struct statvfs shm;
  CHECK(statvfs("/dev/shm", &shm), 0);
  if (shm.f_blocks) CHECK(hf3fs_iovcreate(&iov, mount_point, (shm.f_blocks + 1024) * shm.f_frsize, 0, -1), -ENOSPC);
  CHECK(hf3fs_iovcreate(&iov, mount_point, SIZE_MAX, 0, -1), -EIO);
  /* What could not be made can be destroyed all the same. */
  hf3fs_iovunlink(&iov);
  hf3fs_iovdestroy(&iov);

  CHECK(hf3fs_iovcreate(&iov, mount_point, 10000, 4096, 0), 0);
  CHECK(links(), 4);
  CHECK(hf3fs_iovopen(NULL, no_id, mount_point, 1, 0, -1), -EINVAL);
  CHECK(hf3fs_iovopen(&other, NULL, mount_point, 1, 0, -1), -EINVAL);
  CHECK(hf3fs_iovopen(&other, no_id, NULL, 1, 0, -1), -EINVAL);
  CHECK(hf3fs_iovopen(&other, no_id, long_path, 1, 0, -1), -EINVAL);
  CHECK(hf3fs_iovopen(&other, no_id, mount_point, 1, 0, -1), -ENOENT);
  CHECK(hf3fs_iovopen(&other, (uint8_t *)iov.id, mount_point, 10000, 0, -1), -ENOENT);
  CHECK(hf3fs_iovopen(&other, (uint8_t *)iov.id, mount_point, 10001, 4096, -1), -EINVAL);
  CHECK(hf3fs_iovopen(&other, (uint8_t *)iov.id, mount_point, 10000, 4096, -1), 0);
  memcpy(iov.base + 9990, "123456789", 10);
  CHECK(memcmp(other.base + 9990, "123456789", 10), 0);
  hf3fs_iovdestroy(&other);
  CHECK(links(), 4); /* only the creator unregisters */
  CHECK(other.iovh == NULL, 1);
  hf3fs_iovdestroy(&other);

  CHECK(hf3fs_iovwrap(NULL, &other, no_id, mount_point, 1, 0, -1), -EINVAL);
  CHECK(hf3fs_iovwrap(&other, &other, no_id, long_path, 1, 0, -1), -EINVAL);
  CHECK(hf3fs_iovwrap(&other, &other, NULL, mount_point, 1, 0, -1), -EINVAL);
  CHECK(hf3fs_iovwrap(&other, &other, no_id, NULL, 1, 0, -1), -EINVAL);
  CHECK(hf3fs_iovwrap(&other, NULL, no_id, mount_point, 1, 0, 5000), 0);
  CHECK(hf3fs_iovwrap(&other, iov.base, (uint8_t *)iov.id, mount_point, iov.size, 4096, -1), 0);
  CHECK(strcmp(other.mount_point, mount_point), 0);
  hf3fs_iovunlink(&other);
  hf3fs_iovdestroy(&other);
  hf3fs_iovunlink(NULL);
  hf3fs_iovdestroy(NULL);
  CHECK(links(), 4);
  hf3fs_iovunlink(&iov);
  hf3fs_iovunlink(&iov);
  CHECK(hf3fs_iovopen(&other, (uint8_t *)iov.id, mount_point, 10000, 4096, -1), -ENOENT);
  hf3fs_iovdestroy(&iov);
  CHECK(links(), 3);
}

static void ring_creation(void) {
  struct hf3fs_ior ior;
  CHECK(hf3fs_iorcreate(NULL, mount_point, 4, true, 0, -1), -EINVAL);
  CHECK(hf3fs_iorcreate(&ior, NULL, 4, true, 0, -1), -EINVAL);
  CHECK(hf3fs_iorcreate(&ior, "", 4, true, 0, -1), -EINVAL);
  CHECK(hf3fs_iorcreate(&ior, mount_point, 0, true, 0, -1), -EINVAL);
  CHECK(hf3fs_iorcreate(&ior, mount_point, -1, true, 0, -1), -EINVAL);
  CHECK(hf3fs_iorcreate(&ior, mount_point, 0x7fffffff, true, 0, -1), -EINVAL);
  CHECK(hf3fs_iorcreate2(&ior, mount_point, 4, true, 5, 1, -1), -EINVAL);
  CHECK(hf3fs_iorcreate3(&ior, mount_point, 4, true, 0, 0, -1, -1), -EINVAL);
  CHECK(hf3fs_iorcreate4(&ior, mount_point, 4, true, 0, -1, -1, 0), -EINVAL);
  CHECK(hf3fs_iorcreate4(&ior, "/no/such/mount", 4, true, 0, 0, -1, 0), -ENOENT);
  CHECK(hf3fs_io_entries(&ior), -EINVAL);
  CHECK(hf3fs_io_entries(NULL), -EINVAL);
  CHECK(hf3fs_submit_ios(&ior), -EINVAL);
  CHECK(hf3fs_submit_ios(NULL), -EINVAL);
  hf3fs_iordestroy(&ior);
  hf3fs_iordestroy(NULL);
  CHECK(links(), 3);

  char link[400];
  CHECK(hf3fs_iorcreate4(&ior, mount_point, 4, true, -2, 7, -1, HF3FS_IOR_FORBID_READ_HOLES), 0);
  CHECK(ior.iov.size, hf3fs_ior_size(4));
  CHECK(hf3fs_io_entries(&ior), 4);
  const uint8_t *b = (const uint8_t *)ior.iov.id;
  snprintf(link, sizeof link,
           "%s/%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x.r-2.t7.f10", iovs, b[0], b[1],
           b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
  struct stat stat;
  CHECK(lstat(link, &stat), 0);
  hf3fs_iovdestroy(&ior.iov); /* the ring's memory is the ring's */
  CHECK(hf3fs_io_entries(&ior), 4);
  hf3fs_iordestroy(&ior);
  hf3fs_iordestroy(&ior);
  CHECK(links(), 3);
}

static void registration(const char *file) {
  pretend_3fs = 0;
  CHECK(hf3fs_reg_fd(-1, 0), EBADF);
  CHECK(hf3fs_reg_fd(0x7fffffff, 0), EBADF);
  int fd = open(file, O_RDWR | O_CREAT, 0600);
  CHECK(hf3fs_reg_fd(fd, 0), EBADF);
  pretend_3fs = 1;
  CHECK(hf3fs_is_hf3fs(fd), 1);
  int handle = hf3fs_reg_fd(fd, 99);
  CHECK(handle < 0, 1);
  CHECK(hf3fs_reg_fd(fd, 0), EINVAL);
  hf3fs_dereg_fd(fd);
  CHECK(fcntl(-handle, F_GETFD), -1);
  handle = hf3fs_reg_fd(fd, 0);
  close(fd);
  CHECK(fcntl(-handle, F_GETFD) >= 0, 1);
  hf3fs_dereg_fd(fd); /* after close: the duplicate does not leak */
  CHECK(fcntl(-handle, F_GETFD), -1);
  fd = open(file, O_RDWR);
  handle = hf3fs_reg_fd(fd, 0);
  hf3fs_dereg_fd(handle); /* by handle */
  handle = hf3fs_reg_fd(fd, 0);
  CHECK(handle < 0, 1);
  hf3fs_dereg_fd(handle);
  close(fd);
  hf3fs_dereg_fd(-0x7fffffff - 1);
  hf3fs_dereg_fd(0x7fffffff);
  hf3fs_dereg_fd(12345);
}

/* What a daemon does, in C: answers everything queued with its length. */
static void serve(struct hf3fs_ior *ior) {
  int slots = hf3fs_io_entries(ior) + 1;
  volatile int32_t *words = (int32_t *)ior->iov.base;
  uint8_t *args = ior->iov.base + 16, *cqes = args + 56 * slots, *sqes = cqes + 24 * slots;
  while (words[1] != words[0]) {
    struct hf3fs_cqe *cqe = (struct hf3fs_cqe *)(cqes + 24 * words[2]);
    uint8_t *sqe = sqes + 16 * words[1];
    memcpy(&cqe->index, sqe, 4);
    memcpy(&cqe->userdata, sqe + 8, 8);
    memcpy(&cqe->result, args + 56 * cqe->index + 40, 8);
    words[1] = (words[1] + 1) % slots;
    words[2] = (words[2] + 1) % slots;
  }
}

static void requests(const char *file) {
  struct hf3fs_ior ior;
  struct hf3fs_iov iov, empty;
  struct hf3fs_cqe cqes[4];
  struct timespec past = {1, 0}, broken = {1, 1000000000};
  pretend_3fs = 1;
  int fd = open(file, O_RDWR), write_only = open(file, O_WRONLY), unknown = open(file, O_RDWR);
  int handle = hf3fs_reg_fd(fd, 0);
  CHECK(handle < 0 && hf3fs_reg_fd(write_only, 0) < 0, 1);
  CHECK(hf3fs_iorcreate(&ior, mount_point, 2, true, 0, -1), 0);
  CHECK(hf3fs_iovcreate(&iov, mount_point, 8192, 0, -1), 0);
  CHECK(hf3fs_iovwrap(&empty, NULL, no_id, mount_point, 8192, 0, -1), 0);
  uint8_t *base = iov.base;

  CHECK(hf3fs_prep_io(NULL, &iov, true, base, fd, 0, 1, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, NULL, true, base, fd, 0, 1, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, &iov, false, base, fd, 0, 1, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, fd, 0, 0, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, &empty, true, NULL, fd, 0, 1, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, &iov, true, NULL, fd, 0, 1, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base - 1, fd, 0, 1, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, fd, 0, 8193, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base + 8192, fd, 0, 1, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base + 1, fd, 0, UINT64_MAX, NULL), -EINVAL); /* the sum wraps */
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, 0x7fffffff, 0, 1, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, -0x7fffffff - 1, 0, 1, NULL), -EINVAL);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, unknown, 0, 0, NULL), -EINVAL); /* before the file is looked up */
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, unknown, 0, 1, NULL), -EBADF);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, 99999, 0, 1, NULL), -EBADF);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, write_only, 0, 1, NULL), -EACCES);

  CHECK(hf3fs_wait_for_ios(NULL, cqes, 4, 0, NULL), -EINVAL);
  CHECK(hf3fs_wait_for_ios(&ior, NULL, 4, 0, NULL), -EINVAL);
  CHECK(hf3fs_wait_for_ios(&ior, cqes, 0, 0, NULL), -EINVAL);
  CHECK(hf3fs_wait_for_ios(&ior, cqes, -1, 0, NULL), -EINVAL);
  CHECK(hf3fs_wait_for_ios(&ior, cqes, 4, 1, &broken), -EINVAL);
  CHECK(hf3fs_wait_for_ios(&ior, cqes, 4, 0, NULL), 0);
  CHECK(hf3fs_wait_for_ios(&ior, cqes, 4, -5, NULL), 0);
  CHECK(hf3fs_wait_for_ios(&ior, cqes, 4, 4, &past), 0);
  struct timespec deadline = soon(30);
  CHECK(hf3fs_wait_for_ios(&ior, cqes, 4, 1, &deadline), 0);

  CHECK(hf3fs_prep_io(&ior, &iov, true, base, fd, 0, 8192, &ior), 0);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base + 8191, handle, 0, 1, &iov), 1);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, fd, 0, 1, NULL), -EAGAIN);
  CHECK(hf3fs_submit_ios(&ior), 0);
  serve(&ior);
  memset(cqes, 0xee, sizeof cqes);
  CHECK(hf3fs_wait_for_ios(&ior, cqes, 4, 2, NULL), 2);
  CHECK(cqes[0].index == 0 && cqes[0].result == 8192 && cqes[0].userdata == &ior, 1);
  CHECK(cqes[1].index == 1 && cqes[1].result == 1 && cqes[1].userdata == &iov, 1);
  CHECK(cqes[2].index, 0xeeeeeeee - 0x100000000LL);

  hf3fs_dereg_fd(write_only);
  hf3fs_dereg_fd(fd);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, fd, 0, 1, NULL), -EBADF);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, handle, 0, 1, NULL), -EBADF);
  hf3fs_iovdestroy(&iov);
  CHECK(hf3fs_prep_io(&ior, &iov, true, base, fd, 0, 1, NULL), -EINVAL);

  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    int wait = hf3fs_wait_for_ios(&ior, cqes, 4, 1, NULL), submit = hf3fs_submit_ios(&ior);
    hf3fs_iordestroy(&ior);
    _exit(wait == -ECHILD && submit == -ECHILD ? 0 : 1);
  }
  int status;
  CHECK(waitpid(child, &status, 0), child);
  CHECK(status, 0);
  CHECK(links(), 4); /* the child's destroy leaves the parent's ring */

  ((int32_t *)ior.iov.base)[2] = 99; /* a daemon gone mad */
  CHECK(hf3fs_wait_for_ios(&ior, cqes, 4, 1, NULL), -EIO);
  hf3fs_iordestroy(&ior);
  CHECK(hf3fs_submit_ios(&ior), -EINVAL);
  CHECK(hf3fs_wait_for_ios(&ior, cqes, 4, 0, NULL), -EINVAL);
  CHECK(links(), 3);
  close(fd), close(write_only), close(unknown);
}

static void files(const char *file) {
  size_t start[1001] = {0}, end[1001] = {0};
  char link[400];
  pretend_3fs = 0;
  snprintf(link, sizeof link, "%s.link", file);
  CHECK(hf3fs_hardlink(NULL, link), EINVAL);
  CHECK(hf3fs_hardlink(file, NULL), EINVAL);
  CHECK(hf3fs_hardlink("/no/such/file", link), ENOENT);
  CHECK(hf3fs_hardlink(file, "/no/such/dir/link"), ENOENT);
  CHECK(hf3fs_hardlink(file, "/tmp/"), EINVAL);
  CHECK(hf3fs_hardlink(file, "/proc/link"), EXDEV);
  CHECK(hf3fs_hardlink(file, link), ENOTTY);
  int fd = open(file, O_RDWR);
  CHECK(hf3fs_punchhole(-1, 1, start, end, 0), EBADF);
  CHECK(hf3fs_punchhole(fd, 1, NULL, end, 0), EINVAL);
  CHECK(hf3fs_punchhole(fd, 1, start, NULL, 0), EINVAL);
  CHECK(hf3fs_punchhole(fd, -1, start, end, 0), EINVAL);
  CHECK(hf3fs_punchhole(fd, 1001, start, end, 0), EINVAL);
  CHECK(hf3fs_punchhole(fd, 1000, start, end, 0), ENOTTY);
  start[0] = 1;
  CHECK(hf3fs_punchhole(fd, 1, start, end, 0), EINVAL);
  close(fd);
  CHECK(hf3fs_punchhole(fd, 1, end, end, 0), EBADF);
}

int main(int argc, char **argv) {
  char file[300];
  if (argc != 2) return 2;
  make_mount(argv[1]);
  snprintf(file, sizeof file, "%s/file", argv[1]);
  layouts();
  detection();
  iov_functions();
  ring_creation();
  registration(file);
  requests(file);
  files(file);
  sem_unlink(semaphore);
  puts("ok");
  return 0;
}
