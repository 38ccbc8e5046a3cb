// The header in C++11, and in a translation unit that includes it twice.
#include "hf3fs_usrbio.h"
#include "usrbio.h"

static_assert(sizeof(hf3fs_iov) == 312 && sizeof(hf3fs_ior) == 600 && sizeof(hf3fs_cqe) == 24, "layout");

int main() {
  hf3fs_ior *none = nullptr;
  return hf3fs_submit_ios(none) < 0 ? 0 : 1;
}
