// A device named `cuda` whose memory is the host's, for a build of torch without CUDA.
//
// Every operator runs as the CPU's, on the same memory, so numbers are those of a CPU. What differs from a CPU is what
// this is for: tensors of both devices in one call are refused, memory that nobody has written is NaN, and every wait
// of the host for the device is counted. It knows no streams, no kernels and no limits of types: those need a GPU.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <limits>
#include <mutex>
#include <set>

namespace {
using at::Tensor;
using torch::jit::Stack;

const c10::Device HOST(c10::DeviceType::CPU), DEVICE(c10::DeviceType::CUDA, 0);
const c10::DispatchKeySet KEYS(c10::DispatchKey::CUDA);

std::atomic<int64_t> waits{0};
std::atomic<bool> refused{false};

void wait(const std::string& what) {
  ++waits;
  TORCH_CHECK(!refused, what, " waits for the pretended GPU");
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct DeviceMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? std::malloc(bytes) : nullptr;
    if (data) std::memset(data, 0xff, bytes);  // NaN in every type of floating point
    return {data, data, &std::free, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} device_memory;
const bool allocates = (c10::SetAllocator(c10::DeviceType::CUDA, &device_memory), true);

std::mutex pinned_lock;
std::set<const void*> pinned;

bool is_pinned(const void* data) {
  std::lock_guard<std::mutex> lock(pinned_lock);
  return pinned.count(data) > 0;
}

struct PinnedMemory final : c10::Allocator {
  static void release(void* data) {
    std::lock_guard<std::mutex> lock(pinned_lock);
    pinned.erase(data);
    std::free(data);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::malloc(std::max<size_t>(bytes, 1));
    std::lock_guard<std::mutex> lock(pinned_lock);
    pinned.insert(data);
    return {data, data, &release, HOST};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} pinned_memory;

// A generator of the device: the CPU's, in a class that says another device.
struct Generator final : c10::GeneratorImpl {
  at::Generator cpu;
  explicit Generator(at::Generator of) : GeneratorImpl(DEVICE, KEYS), cpu(std::move(of)) {}
  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_state(const c10::TensorImpl& state) override { cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu.unsafeGetGeneratorImpl()->get_state(); }
  GeneratorImpl* clone_impl() const override { return new Generator(cpu.clone()); }
};

at::Generator new_generator() {
  return at::Generator(c10::make_intrusive<Generator>(at::detail::createCPUGenerator()));
}

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator usual = new_generator();
    return usual;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

// The same memory as a tensor of the other device, which keeps the first alive.
Tensor as_on(const Tensor& x, c10::Device device) {
  auto* owner = new Tensor(x);
  c10::DataPtr data(x.storage().mutable_data(), owner, [](void* of) { delete static_cast<Tensor*>(of); }, device);
  c10::Allocator* allocator = device.is_cuda() ? &device_memory : c10::GetAllocator(c10::DeviceType::CPU);
  c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), x.storage().nbytes(), std::move(data), allocator, true));
  auto keys = device.is_cuda() ? KEYS : c10::DispatchKeySet(c10::DispatchKey::CPU);
  Tensor same = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, x.dtype());
  same.unsafeGetTensorImpl()->set_storage_offset(x.storage_offset());
  same.unsafeGetTensorImpl()->set_sizes_and_strides(x.sizes(), x.strides());
  if (x.is_neg()) same._set_neg(true);
  if (x.is_conj()) same._set_conj(true);
  return same;
}

// Operators whose indices may be on the host, and those whose sizes the host has to ask for.
const std::set<std::string> TAKES_INDICES{
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"};
const std::set<std::string> WAITS{"aten::nonzero",    "aten::masked_select", "aten::equal",
                                  "aten::_unique2",   "aten::unique_dim",    "aten::unique_consecutive",
                                  "aten::bincount",   "aten::repeat_interleave"};

// Any operator: the CPU's, on the same memory.
void on_the_host(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size(), begin = stack->size() - count;
  const std::vector<c10::IValue> arguments(stack->begin() + begin, stack->end());
  std::vector<std::pair<Tensor, Tensor>> written;
  bool mixed = false;
  auto here = [&](const Tensor& x) -> Tensor {
    if (!x.defined() || x.is_meta()) return x;
    mixed |= !x.is_cuda() && x.dim() > 0;  // a single number of the host may go beside
    return x.is_cuda() ? as_on(x, HOST) : x;
  };
  for (size_t i = 0; i < count; ++i) {
    auto& value = (*stack)[begin + i];
    const auto* alias = schema.arguments()[i].alias_info();
    if (value.isTensor()) {
      value = here(value.toTensor());
      if (alias && alias->isWrite()) written.emplace_back(arguments[i].toTensor(), value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& x : value.toTensorVector()) list.push_back(here(x));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      const bool before = mixed;
      for (const auto& x : value.toOptionalTensorVector()) list.push_back(x ? std::optional<Tensor>(here(*x)) : x);
      if (TAKES_INDICES.count(schema.name())) mixed = before;
      value = list;
    } else if (value.isList() && !value.toList().empty() && value.toList().get(0).isTensorList()) {  // collectives
      c10::List<c10::List<Tensor>> lists;
      for (const c10::IValue& part : value.toListRef()) {
        c10::List<Tensor> list;
        for (const Tensor& x : part.toTensorVector()) list.push_back(here(x));
        lists.push_back(list);
      }
      value = lists;
    } else if (value.isDevice()) {
      value = HOST;
    } else if (value.isGenerator() && value.toGenerator().defined()) {
      const auto generator = value.toGenerator();
      TORCH_CHECK(generator.device().is_cuda(), schema.name(), " on the pretended GPU has a generator of the CPU");
      value = static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->cpu;
    }
  }
  TORCH_CHECK(!mixed, schema.name(), " has tensors of the CPU and of the pretended GPU");
  if (WAITS.count(schema.name())) wait(schema.name());
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (auto& [ours, same] : written)  // what is written to may have become larger
    if (ours.is_cuda() && (ours.sizes() != same.sizes() || ours.data_ptr() != same.data_ptr())) {
      auto* impl = ours.unsafeGetTensorImpl();
      impl->set_storage_keep_dtype(as_on(same, DEVICE).storage());
      impl->set_storage_offset(same.storage_offset());
      impl->set_sizes_and_strides(same.sizes(), same.strides());
    }
  const auto returns = schema.returns().size(), first = stack->size() - returns;
  auto there = [&](const Tensor& x, const c10::AliasInfo* alias) -> Tensor {
    if (!x.defined()) return x;
    for (size_t i = 0; alias && alias->isWrite() && i < count; ++i) {
      const auto* of = schema.arguments()[i].alias_info();
      if (of && *of == *alias && arguments[i].isTensor()) return arguments[i].toTensor();
    }
    return as_on(x, DEVICE);
  };
  for (size_t i = 0; i < returns; ++i) {
    auto& value = (*stack)[first + i];
    if (value.isTensor()) {
      value = there(value.toTensor(), schema.returns()[i].alias_info());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& x : value.toTensorVector()) list.push_back(as_on(x, DEVICE));
      value = list;
    }
  }
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &device_memory, KEYS, dtype.value_or(at::kFloat), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           &device_memory, KEYS, dtype.value_or(at::kFloat));
}

// As torch's: between host and device only a copy that may be behind, of pinned memory, does not wait.
Tensor& copy_(Tensor& to, const Tensor& from, bool non_blocking) {
  const Tensor& host = to.is_cuda() ? from : to;
  if (!host.is_cuda() && !(non_blocking && is_pinned(host.storage().data())))
    wait(to.is_cuda() ? "a copy from the host" : "a copy to the host");
  Tensor target = to.is_cuda() ? as_on(to, HOST) : to;
  target.copy_(from.is_cuda() ? as_on(from, HOST) : from);
  return to;
}

at::Scalar local_scalar(const Tensor& x) {
  wait("reading a number");
  return at::_local_scalar_dense(as_on(x, HOST));
}

void resize_storage(const Tensor& x, int64_t bytes) {
  auto data = device_memory.allocate(bytes);
  if (bytes) std::memcpy(data.get(), x.storage().data(), std::min<size_t>(bytes, x.storage().nbytes()));
  x.storage().set_data_ptr_noswap(std::move(data));
  x.storage().set_nbytes(bytes);
}

const Tensor& resize_(const Tensor& x, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  const size_t bytes = (c10::multiply_integers(sizes) + x.storage_offset()) * x.itemsize();
  if (bytes > x.storage().nbytes()) resize_storage(x, bytes);
  x.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return x;
}

Tensor& set_(Tensor& x, c10::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  auto* impl = x.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset.expect_int());
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return x;
}

Tensor& set_storage(Tensor& x, c10::Storage source) {
  const int64_t size = source.nbytes() / x.itemsize();
  return set_(x, std::move(source), 0, {size}, {1});
}

Tensor& set_tensor(Tensor& x, const Tensor& source) {
  return set_(x, source.storage(), source.storage_offset(), source.sym_sizes(), source.sym_strides());
}

// torch chooses among kernels of CUDA here; the formula takes a mask that is added.
Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, double dropout,
              bool causal, std::optional<double> scale, bool grouped) {
  auto added = mask;
  if (mask && mask->scalar_type() == at::kBool)
    added = at::zeros(mask->sizes(), q.options())
                .masked_fill(mask->logical_not(), -std::numeric_limits<double>::infinity());
  return std::get<0>(at::_scaled_dot_product_attention_math(q, k, v, added, dropout, causal, {}, scale, grouped));
}
}  // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}
TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_host>());
}
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("resize_", resize_);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("set_.source_Storage_storage_offset", set_);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Tensor", set_tensor);
}
TORCH_LIBRARY_IMPL(aten, AutogradCUDA, m) {
  m.impl("scaled_dot_product_attention", attend);
}
// What ranks exchange, by the CPU's way of it.
TORCH_LIBRARY_IMPL(c10d, CUDA, m) {
  for (const char* name :
       {"allreduce_", "allreduce_coalesced_", "broadcast_", "allgather_", "_allgather_base_", "reduce_", "reduce_scatter_",
        "allgather_into_tensor_coalesced_", "_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_", "gather_",
        "scatter_", "alltoall_", "alltoall_base_", "barrier", "send", "recv_"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_the_host>());
}
TORCH_LIBRARY(pretended, m) {
  m.def("waits() -> int", []() { return waits.load(); });
  m.def("refuse_waits(bool refuse) -> ()", [](bool refuse) { refused = refuse; });
  m.def("resize_storage(Tensor(a!) x, int bytes) -> ()", resize_storage);
  m.def("on_host(Tensor x) -> Tensor", [](const Tensor& x) { return as_on(x, HOST); });
  m.def("on_device(Tensor x) -> Tensor", [](const Tensor& x) { return as_on(x, DEVICE); });
}
