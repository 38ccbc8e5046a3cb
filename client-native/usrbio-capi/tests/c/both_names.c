/* Both names of the library are one library, with one table of registered files.
 *
 * usage: both_names DIRECTORY-OF-THE-LIBRARY */
#define _GNU_SOURCE
#include "check.h"

#include <dlfcn.h>

int main(int argc, char **argv) {
  char path[4096];
  if (argc != 2) return 2;
  snprintf(path, sizeof path, "%s/libhf3fs_api_shared.so", argv[1]);
  void *one = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!one) fprintf(stderr, "%s\n", dlerror());
  snprintf(path, sizeof path, "%s/libusrbio.so", argv[1]);
  void *two = dlopen(path, RTLD_NOW | RTLD_LOCAL), *three = dlopen("libusrbio.so", RTLD_NOW | RTLD_NOLOAD);
  CHECK(one != NULL && one == two && one == three, 1);
  CHECK(dlsym(one, "hf3fs_reg_fd") == dlsym(two, "hf3fs_reg_fd"), 1);
  CHECK(dlclose(three) + dlclose(two) + dlclose(one), 0);
  puts("ok");
  return 0;
}
