#include "kernels/cuda/fiber.hpp"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace rollcast::kernels::cuda::simt::host {

namespace {
/// Reserved, not used: a kernel's frame is a few KiB, or a few times that under a sanitizer.
constexpr std::size_t stack_bytes = std::size_t{256} << 10;
} // namespace

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
// Stores the registers that a call keeps and the stack pointer, and goes on with another stack.
extern "C" void rollcast_fiber_switch(void** from, void* to) noexcept;
asm(R"(
.text
.p2align 4
.globl rollcast_fiber_switch
.hidden rollcast_fiber_switch
.type rollcast_fiber_switch, @function
rollcast_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rollcast_fiber_switch, . - rollcast_fiber_switch
)");

struct fiber::context {
  void* stack_pointer;
  void* caller;
  void (*function)(void*);
  void* argument;
  std::byte* stack;

  void enter() { rollcast_fiber_switch(&caller, stack_pointer); }
  void leave() { rollcast_fiber_switch(&stack_pointer, caller); }
  void make() {
    // From the top: where a caller's address would be, the entry, six registers. The entry then
    // finds the stack aligned as a call leaves it.
    auto** top = reinterpret_cast<void**>(stack + stack_bytes) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void*>(&entry);
    for (int i = 0; i < 6; ++i)
      *--top = nullptr;
    stack_pointer = top;
  }
  static void entry() {
    context* const self = running;
    self->function(self->argument);
    std::abort(); // A fiber's function leaves for good instead of returning.
  }
  static thread_local context* running;
};
thread_local fiber::context* fiber::context::running = nullptr;
#else
struct fiber::context {
  ucontext_t here;
  ucontext_t caller;
  void (*function)(void*);
  void* argument;
  std::byte* stack;
#if defined(__SANITIZE_THREAD__)
  void* tsan_fiber = nullptr;
  void* tsan_caller = nullptr;
  ~context() {
    if (tsan_fiber != nullptr)
      __tsan_destroy_fiber(tsan_fiber);
  }
#endif

  void enter() {
#if defined(__SANITIZE_THREAD__)
    tsan_caller = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_fiber, 0);
#endif
    swapcontext(&caller, &here);
  }
  void leave() {
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(tsan_caller, 0);
#endif
    swapcontext(&here, &caller);
  }
  void make() {
#if defined(__SANITIZE_THREAD__)
    if (tsan_fiber != nullptr)
      __tsan_destroy_fiber(tsan_fiber);
    tsan_fiber = __tsan_create_fiber(0);
#endif
    getcontext(&here);
    here.uc_stack.ss_sp = stack;
    here.uc_stack.ss_size = stack_bytes;
    here.uc_link = nullptr;
    makecontext(&here, &entry, 0);
  }
  static void entry() {
    context* const self = running;
    self->function(self->argument);
    std::abort(); // A fiber's function leaves for good instead of returning.
  }
  static thread_local context* running;
};
thread_local fiber::context* fiber::context::running = nullptr;
#endif

fiber::~fiber() {
  if (context_ == nullptr)
    return;
  munmap(context_->stack, stack_bytes);
  delete context_;
}

void fiber::start(void (*function)(void*), void* argument) {
  if (context_ == nullptr) {
    context_ = new context{};
    void* const stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
      std::abort(); // Out of address space for a test's emulator.
    context_->stack = static_cast<std::byte*>(stack);
    mprotect(stack, 4096, PROT_NONE); // The end of the stack: a kernel that needs more faults.
  }
#if defined(__SANITIZE_ADDRESS__)
  // Frames that were left for good have not taken their marks away.
  __asan_unpoison_memory_region(context_->stack + 4096, stack_bytes - 4096);
#endif
  context_->function = function;
  context_->argument = argument;
  context_->make();
}

void fiber::enter() {
  context::running = context_;
  context_->enter();
}

void fiber::leave() {
  context_->leave();
}

} // namespace rollcast::kernels::cuda::simt::host
