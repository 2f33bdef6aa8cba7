#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace paramcorrupt {

// A list of tensors as the operator receives it. A torch::stable::Tensor would add to each a reference count of its
// own, which takes a third of the time in which a list crosses into C++.
class TensorList {
 public:
  explicit TensorList(StableIValue value) {
    const auto list = torch::stable::detail::to<StableListHandle>(value);
    size_t size;
    TORCH_ERROR_CODE_CHECK(torch_list_size(list, &size));
    handles_.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item;
      TORCH_ERROR_CODE_CHECK(torch_list_get_item(list, i, &item));
      handles_.push_back(torch::stable::detail::to<AtenTensorHandle>(item));
    }
    TORCH_ERROR_CODE_CHECK(torch_delete_list(list));
  }
  TensorList(const TensorList&) = delete;
  ~TensorList() {
    for (AtenTensorHandle handle : handles_) aoti_torch_delete_tensor_object(handle);
  }

  size_t size() const { return handles_.size(); }
  AtenTensorHandle operator[](size_t i) const { return handles_[i]; }

 private:
  std::vector<AtenTensorHandle> handles_;
};

// What `read` says of a tensor: get(aoti_torch_get_numel, x).
template <class Value>
Value get(AOTITorchError (*read)(AtenTensorHandle, Value*), AtenTensorHandle x) {
  Value value;
  TORCH_ERROR_CODE_CHECK(read(x, &value));
  return value;
}

}  // namespace paramcorrupt
