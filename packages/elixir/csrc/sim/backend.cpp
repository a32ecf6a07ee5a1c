// A strict device simulated on the CPU: PyTorch's PrivateUse1 backend under the name "sim".
//
// Device memory has two addresses. Tensors carry the first, which no code may touch: a host that
// reads device memory faults at once, in any thread and at any time. Operators of the device see
// the same bytes through the second, a fixed distance away. There is no window in which the first
// address is open, so nothing has to be locked or timed.
//
// An operator without an implementation of its own runs the CPU's kernel on the second addresses,
// without a copy. What the kernel allocates meanwhile on its thread comes from device memory too:
// results become tensors of the device as they are, and the rest is counted as workspace.
//
// A test build: compiled against the headers of the installed PyTorch by elixir.testing.sim, never
// part of the wheel's own module.

#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_sdp_choice_ops.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/copy.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "memory.h"

namespace {

using at::Tensor;
using c10::Storage;

constexpr auto kSim = c10::DeviceType::PrivateUse1;

c10::Device sim_device() { return {kSim, 0}; }

// ---- memory ------------------------------------------------------------------------------------

sim::Memory& memory() {
  static auto* one = new sim::Memory();  // tensors may outlive static destructors
  return *one;
}

bool charge_workspace = false;

void release(void* address) { memory().give(address); }

c10::DataPtr owned(void* address) { return {address, address, &release, sim_device()}; }

struct SimAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, sim_device()};
    return owned(memory().take(bytes, true));
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    std::memcpy(memory().kernel(target), memory().kernel(source), bytes);
  }
};
SimAllocator sim_allocator;

// ---- what kernels allocate while they run for the device -----------------------------------------

thread_local int operators_running = 0;
c10::Allocator* host_allocator = nullptr;

void release_any(void* address) {
  if (memory().in_kernel(address)) {
    memory().give(memory().device(address));
  } else {
    host_allocator->raw_deleter()(address);
  }
}

// PyTorch's CPU allocator, but for threads that run an operator of the device.
struct OperatorAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (operators_running == 0 || bytes == 0) return host_allocator->allocate(bytes);
    void* address = memory().kernel(memory().take(bytes, charge_workspace));
    return {address, address, &release_any, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_any; }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }
};
OperatorAllocator operator_allocator;

struct Running {
  Running() { ++operators_running; }
  ~Running() { --operators_running; }
};

// ---- tensors of the device as a CPU kernel sees them ---------------------------------------------

struct Window {
  Storage sim, cpu;
};

// Shows tensors of the device to one call of a CPU kernel, and takes its results back.
class Call {
 public:
  explicit Call(std::string name) : name_(std::move(name)) {}

  Tensor show(const Tensor& sim) {
    auto* impl = sim.unsafeGetTensorImpl();
    const Storage& storage = sim.storage();
    const size_t needed =
        sim.numel() == 0 ? 0
                         : at::detail::computeStorageNbytes(
                               sim.sizes(), sim.strides(), sim.itemsize(), sim.storage_offset());
    TORCH_CHECK(
        needed <= storage.nbytes(), name_, ": reads a tensor of ", needed,
        " bytes whose storage holds ", storage.nbytes(),
        ": its memory on the sim device was given up");
    auto cpu = at::detail::make_tensor<c10::TensorImpl>(
        Storage(window(storage)), c10::DispatchKeySet(c10::DispatchKey::CPU), sim.dtype());
    cpu.unsafeGetTensorImpl()->set_sizes_and_strides(
        sim.sizes(), sim.strides(), sim.storage_offset());
    if (impl->is_conj()) cpu.unsafeGetTensorImpl()->_set_conj(true);
    if (impl->is_neg()) cpu.unsafeGetTensorImpl()->_set_neg(true);
    shown_.emplace_back(sim, cpu);
    return cpu;
  }

  // After the kernel: sizes and storages that it changed in place.
  void update() {
    for (auto& w : windows_) {
      const void* now = w.cpu.data();
      if (now == memory().kernel(w.sim.data())) continue;
      auto* impl = w.sim.unsafeGetStorageImpl();
      const size_t bytes = w.cpu.nbytes();
      impl->set_data_ptr_noswap(take_over(w.cpu));
      impl->set_nbytes(bytes);
    }
    for (auto& [sim, cpu] : shown_) {
      if (sim.sizes() != cpu.sizes() || sim.strides() != cpu.strides() ||
          sim.storage_offset() != cpu.storage_offset()) {
        sim.unsafeGetTensorImpl()->set_sizes_and_strides(
            cpu.sizes(), cpu.strides(), cpu.storage_offset());
      }
    }
  }

  // A tensor that the kernel returned, on the device.
  Tensor result(const Tensor& cpu) {
    if (!cpu.defined() || cpu.device().type() != c10::DeviceType::CPU || !cpu.has_storage()) {
      return cpu;
    }
    for (auto& [sim, shown] : shown_) {
      if (shown.is_same(cpu)) return sim;
    }
    auto made = at::detail::make_tensor<c10::TensorImpl>(
        Storage(home(cpu.storage())), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
        cpu.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(
        cpu.sizes(), cpu.strides(), cpu.storage_offset());
    if (cpu.is_conj()) made.unsafeGetTensorImpl()->_set_conj(true);
    if (cpu.is_neg()) made.unsafeGetTensorImpl()->_set_neg(true);
    return made;
  }

 private:
  Storage window(const Storage& sim) {
    for (auto& w : windows_) {
      if (w.sim.unsafeGetStorageImpl() == sim.unsafeGetStorageImpl()) return w.cpu;
    }
    c10::DataPtr data(memory().kernel(sim.data()), c10::Device(c10::DeviceType::CPU));
    windows_.push_back(
        {sim, Storage(Storage::use_byte_size_t(), sim.nbytes(), std::move(data),
                      &operator_allocator, true)});
    return windows_.back().cpu;
  }

  // The storage of a result: an argument's, or new and charged to the budget.
  Storage home(const Storage& cpu) {
    for (auto* known : {&windows_, &made_}) {
      for (auto& w : *known) {
        if (w.cpu.unsafeGetStorageImpl() == cpu.unsafeGetStorageImpl()) return w.sim;
      }
    }
    const size_t bytes = cpu.nbytes();
    Storage sim(Storage::use_byte_size_t(), bytes, take_over(cpu), &sim_allocator, true);
    made_.push_back({sim, cpu});
    return sim;
  }

  // The memory of a CPU storage, as memory of the device; its owner loses it.
  c10::DataPtr take_over(const Storage& cpu) {
    void* address = cpu.mutable_data();
    const size_t bytes = cpu.nbytes();
    if (address == nullptr || bytes == 0) return {nullptr, sim_device()};
    auto* impl = cpu.unsafeGetStorageImpl();
    if (memory().in_kernel(address) && impl->data_ptr().get_deleter() == &release_any) {
      void* device = memory().device(address);
      memory().charge(device);
      c10::DataPtr old = impl->set_data_ptr(
          c10::DataPtr(address, c10::Device(c10::DeviceType::CPU)));
      old.release_context();
      return owned(device);
    }
    c10::DataPtr copy = sim_allocator.allocate(bytes);  // memory of another thread, or borrowed
    std::memcpy(memory().kernel(copy.get()), address, bytes);
    return copy;
  }

  std::string name_;
  std::vector<Window> windows_, made_;
  std::vector<std::pair<Tensor, Tensor>> shown_;
};

bool on_sim(const Tensor& t) { return t.defined() && t.device().type() == kSim; }

// Every operator without an implementation of its own.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = schema.name();
  const auto count = schema.arguments().size();
  const auto first = stack->size() - count;
  Call call(name);

  const auto seen = [&](const Tensor& t, const c10::Argument& argument) -> Tensor {
    if (on_sim(t)) return call.show(t);
    // as on CUDA, only a CPU scalar may take part
    TORCH_CHECK(
        !t.defined() || (t.device().type() == c10::DeviceType::CPU && t.dim() == 0),
        "Expected all tensors to be on the same device, but found at least two devices, sim:0 and ",
        t.device(), "! (argument ", argument.name(), " of ", name,
        "; move it with .to(\"sim\"))");
    return t;
  };

  for (size_t i = 0; i < count; ++i) {
    c10::IValue& value = (*stack)[first + i];
    const auto& argument = schema.arguments()[i];
    if (value.isTensor()) {
      value = seen(value.toTensor(), argument);
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(seen(t, argument));
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector()) {
        list.push_back(t ? std::optional<Tensor>(seen(*t, argument)) : std::nullopt);
      }
      value = std::move(list);
    } else if (value.isDevice() && value.toDevice().type() == kSim) {
      value = c10::Device(c10::DeviceType::CPU);
    }
  }
  {
    Running running;
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  call.update();
  const auto results = schema.returns().size();
  for (auto i = stack->size() - results; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.result(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(call.result(t));
      value = std::move(list);
    }
  }
}

// ---- operators of the device ---------------------------------------------------------------------

Tensor empty_memory_format(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
    std::optional<at::Device>, std::optional<bool> pin,
    std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(layout.value_or(at::kStrided) == at::kStrided, "sim: only strided tensors");
  TORCH_CHECK(!pin.value_or(false), "sim: only host memory can be pinned");
  return at::detail::empty_generic(
      size, &sim_allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout> layout, std::optional<at::Device>, std::optional<bool> pin) {
  TORCH_CHECK(layout.value_or(at::kStrided) == at::kStrided, "sim: only strided tensors");
  TORCH_CHECK(!pin.value_or(false), "sim: only host memory can be pinned");
  return at::detail::empty_strided_generic(
      size, stride, &sim_allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& source, const Tensor& target, bool) {
  Call call("sim copy");
  const Tensor from = on_sim(source) ? call.show(source) : source;
  Tensor to = on_sim(target) ? call.show(target) : target;
  TORCH_CHECK(
      from.device().is_cpu() && to.device().is_cpu(), "sim: cannot copy from ", source.device(),
      " to ", target.device());
  Running running;
  to.copy_(from);
  return target;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& target) {
  target.resize_(source.sizes());
  return copy_from(source, target, false);
}

at::Scalar local_scalar_dense(const Tensor& self) {
  Call call("item");
  return call.show(self).item();
}

Tensor& set_storage(
    Tensor& self, Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  TORCH_CHECK(
      source.device().type() == kSim, "set_: the storage is on ", source.device(),
      ", the tensor on ", self.device());
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  if (stride.data() == nullptr && !size.empty()) {
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(size);
  } else {
    impl->set_sizes_and_strides(size, stride, offset);
  }
  return self;
}

Tensor& set_nothing(Tensor& self) {
  Storage nothing(Storage::use_byte_size_t(), 0, sim_allocator.allocate(0), &sim_allocator, true);
  return set_storage(self, nothing, 0, {0}, {1});
}

// A CPU tensor over a tensor's memory: for kernels that take pointers, as a device's own would.
Tensor window(const Tensor& self) {
  Call call("window");
  const Tensor cpu = call.show(self);
  auto* keep = new Storage(self.storage());
  c10::DataPtr data(
      memory().kernel(self.storage().data()), keep,
      [](void* context) { delete static_cast<Storage*>(context); },
      c10::Device(c10::DeviceType::CPU));
  Storage storage(Storage::use_byte_size_t(), keep->nbytes(), std::move(data), nullptr, false);
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), self.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(
      self.sizes(), self.strides(), self.storage_offset());
  return made;
}

// `self.data = value` between the host and the device; PyTorch's own setter refuses.
void place(const Tensor& self, const Tensor& value) {
  TORCH_CHECK(
      self.layout() == at::kStrided && value.layout() == at::kStrided,
      "place: only strided tensors");
  if (auto* meta = torch::autograd::impl::get_autograd_meta(self)) {
    meta->grad_accumulator_.reset();  // the next graph makes one for the new device
  }
  self.unsafeGetTensorImpl()->shallow_copy_from(value.getIntrusivePtr());
}

// Attention runs the same kernels as on the CPU, so it saves the same tensors.
int64_t attention_kernel(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask,
    double dropout, bool causal, std::optional<double> scale, bool grouped) {
  return at::_ops::_fused_sdp_choice::redispatch(
      c10::DispatchKeySet(c10::DispatchKey::CPU), query, key, value, mask, dropout, causal, scale,
      grouped);
}

// ---- what PyTorch asks of a device ---------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kSim; }
  c10::Device exchangeDevice(c10::Device) const override { return sim_device(); }
  c10::Device getDevice() const override { return sim_device(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  // work is done when its call returns: events have always happened
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}

 private:
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, sim_device()); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  at::Device getDeviceFromPtr(void*) const override { return sim_device(); }
  void resizePrivateUse1Bytes(const Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    c10::DataPtr next = sim_allocator.allocate(bytes);
    if (const size_t kept = std::min(bytes, storage.nbytes())) {
      std::memcpy(memory().kernel(next.get()), memory().kernel(storage.data()), kept);
    }
    impl->set_data_ptr_noswap(std::move(next));
    impl->set_nbytes(bytes);
  }
};

// ---- a host that reads device memory -------------------------------------------------------------

struct sigaction earlier_handler;

void on_fault(int, siginfo_t* info, void*) {
  if (memory().in_device(info->si_addr)) {
    static const char text[] =
        "sim: host code touched memory of the sim device; copy the tensor to the host first "
        "(.to(\"cpu\"))\n";
    const ssize_t written = write(STDERR_FILENO, text, sizeof(text) - 1);
    (void)written;
  }
  sigaction(SIGSEGV, &earlier_handler, nullptr);  // the access is repeated and ends the process
}

void register_all() {
  host_allocator = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&operator_allocator, std::numeric_limits<uint8_t>::max());
  c10::SetAllocator(kSim, &sim_allocator, std::numeric_limits<uint8_t>::max());
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  memory();
  struct sigaction action = {};
  action.sa_sigaction = &on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &earlier_handler);
}

struct AtLoad {
  AtLoad() { register_all(); }
} at_load;

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &attention_kernel)
}  // namespace at::native

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty_memory_format);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_", &set_nothing);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  // compositions that ask which device they are on, and know no such device
  m.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

// the copy itself conjugates and negates; to resolve these flags first would copy without end
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

namespace {
// Some operators have a kernel for the CPU and a composition of others for every other device
// (layer norm is one). The device takes the kernel: same bits and same memory as on the CPU.
struct PreferKernels {
  PreferKernels() : library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, "", 0) {
    for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
      const auto op = c10::Dispatcher::singleton().findOp(name);
      if (name.name.rfind("aten::", 0) == 0 && op &&
          op->hasKernelForDispatchKey(c10::DispatchKey::CPU) &&
          op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) &&
          !op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) {
        const std::string full =
            name.name + (name.overload_name.empty() ? "" : "." + name.overload_name);
        library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
      }
    }
  }
  torch::Library library;
};
}  // namespace

TORCH_LIBRARY(elixir_sim, m) {
  m.def("window(Tensor self) -> Tensor");
  m.impl("window", c10::DispatchKey::PrivateUse1, &window);
  m.def("place(Tensor self, Tensor value) -> ()", &place);
}

extern "C" {
// Complete the device: called once, when the library has been loaded.
void elixir_sim_start() {
  static const auto* kernels = new PreferKernels();
  (void)kernels;
}
void elixir_sim_set_budget(uint64_t bytes) { memory().budget(bytes); }
uint64_t elixir_sim_budget() { return memory().budget(); }
uint64_t elixir_sim_read(int which) { return memory().read(which); }
void elixir_sim_reset_peaks() { memory().reset_peaks(); }
void elixir_sim_charge_workspace(int on) { charge_workspace = on != 0; }
}
