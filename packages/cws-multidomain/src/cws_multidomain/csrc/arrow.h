#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "printable.h"

// Arrow's C data interface: string arrays in, lists of (start, end) out.
extern "C" {
struct ArrowSchema {
  const char* format;
  const char* name;
  const char* metadata;
  int64_t flags;
  int64_t n_children;
  ArrowSchema** children;
  ArrowSchema* dictionary;
  void (*release)(ArrowSchema*);
  void* private_data;
};
struct ArrowArray {
  int64_t length;
  int64_t null_count;
  int64_t offset;
  int64_t n_buffers;
  int64_t n_children;
  const void** buffers;
  ArrowArray** children;
  ArrowArray* dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};
struct ArrowArrayStream {
  int (*get_schema)(ArrowArrayStream*, ArrowSchema*);
  int (*get_next)(ArrowArrayStream*, ArrowArray*);
  const char* (*get_last_error)(ArrowArrayStream*);
  void (*release)(ArrowArrayStream*);
  void* private_data;
};
}

namespace cws::arrow {

namespace nb = nanobind;

// A string array, read in place.
struct Texts {
  const uint8_t* data = nullptr;
  const void* splits = nullptr;
  const uint8_t* validity = nullptr;
  int64_t offset = 0, length = 0;
  bool large = false;

  int64_t split(int64_t i) const {
    if (!splits) return 0;
    return large ? static_cast<const int64_t*>(splits)[offset + i] : static_cast<const int32_t*>(splits)[offset + i];
  }
  bool null(int64_t i) const { return validity && !(validity[(offset + i) >> 3] >> ((offset + i) & 7) & 1); }
};

inline bool is_large(const ArrowSchema& schema) {
  if (!std::strcmp(schema.format, "u")) return false;
  if (!std::strcmp(schema.format, "U")) return true;
  throw nb::type_error(("texts must be an Arrow array of string or large_string, got the format \"" +
                        printable(schema.format) + "\"; cast it first")
                           .c_str());
}

inline Texts texts_of(const ArrowArray& array, bool large) {
  Texts t;
  t.validity = array.null_count == 0 ? nullptr : static_cast<const uint8_t*>(array.buffers[0]);
  t.splits = array.buffers[1];
  t.data = static_cast<const uint8_t*>(array.buffers[2]);
  t.offset = array.offset;
  t.length = array.length;
  t.large = large;
  return t;
}

template <class T>
T* pointer(nb::handle capsule, const char* name) {
  auto* p = static_cast<T*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (!p) throw nb::python_error();
  return p;
}

// A schema or an array, released when it goes.
template <class T>
struct Owned : T {
  Owned() : T{} {}
  Owned(const Owned&) = delete;
  ~Owned() {
    if (this->release) this->release(this);
  }
};

// ---- export

inline constexpr const char* kSchemaName = "arrow_schema";
inline constexpr const char* kArrayName = "arrow_array";

struct SchemaNode {
  std::vector<std::unique_ptr<ArrowSchema>> own;
  std::vector<ArrowSchema*> children;
};

inline void fill_schema(ArrowSchema* s, const char* format, const char* name,
                        std::vector<std::unique_ptr<ArrowSchema>> children) {
  auto* node = new SchemaNode{std::move(children), {}};
  for (auto& c : node->own) node->children.push_back(c.get());
  *s = {
      format, name, nullptr, 0, int64_t(node->children.size()), node->children.data(), nullptr, [](ArrowSchema* self) {
    auto* held = static_cast<SchemaNode*>(self->private_data);
    for (ArrowSchema* c : held->children) {
      if (c->release) c->release(c);
    }
    delete held;
    self->release = nullptr;
  }, node};
}

inline std::unique_ptr<ArrowSchema> make_schema(const char* format, const char* name,
                                                std::vector<std::unique_ptr<ArrowSchema>> children = {}) {
  auto s = std::make_unique<ArrowSchema>();
  fill_schema(s.get(), format, name, std::move(children));
  return s;
}

// large_list<struct<start: int32, end: int32>>
inline std::unique_ptr<ArrowSchema> spans_schema() {
  std::vector<std::unique_ptr<ArrowSchema>> fields, item;
  fields.push_back(make_schema("i", "start"));
  fields.push_back(make_schema("i", "end"));
  item.push_back(make_schema("+s", "item", std::move(fields)));
  return make_schema("+L", "", std::move(item));
}

struct ArrayNode {
  PyObject* owner = nullptr;  // what the buffers belong to
  std::vector<const void*> buffers;
  std::vector<std::unique_ptr<ArrowArray>> own;
  std::vector<ArrowArray*> children;
};

inline std::unique_ptr<ArrowArray> make_array(int64_t length, std::vector<const void*> buffers, PyObject* owner,
                                              std::vector<std::unique_ptr<ArrowArray>> children = {}) {
  auto* node = new ArrayNode{owner, std::move(buffers), std::move(children), {}};
  if (owner) Py_INCREF(owner);
  for (auto& c : node->own) node->children.push_back(c.get());
  auto a = std::make_unique<ArrowArray>();
  *a = {length,
        0,
        0,
        int64_t(node->buffers.size()),
        int64_t(node->children.size()),
        node->buffers.data(),
        node->children.data(),
        nullptr,
        [](ArrowArray* self) {
    auto* held = static_cast<ArrayNode*>(self->private_data);
    for (ArrowArray* c : held->children) {
      if (c->release) c->release(c);
    }
    if (held->owner && Py_IsInitialized()) {
      const PyGILState_STATE state = PyGILState_Ensure();
      Py_DECREF(held->owner);
      PyGILState_Release(state);
    }
    delete held;
    self->release = nullptr;
  },
        node};
  return a;
}

template <class T>
nb::object capsule(std::unique_ptr<T> value, const char* name) {
  PyObject* made = PyCapsule_New(value.get(), name, [](PyObject* self) {
    const char* own = PyCapsule_GetName(self);
    auto* held = static_cast<T*>(PyCapsule_GetPointer(self, own));
    if (held->release) held->release(held);
    delete held;
  });
  if (!made) throw nb::python_error();
  value.release();
  return nb::steal(made);
}

}  // namespace cws::arrow
