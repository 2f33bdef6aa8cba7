#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "crc32c.h"
#include "printable.h"

// A model file: a header, a table of named sections, sections. Mapped read-only, or bytes in memory.
namespace cws {

static_assert(std::endian::native == std::endian::little, "model files are little-endian and used in place");

inline constexpr uint32_t kFormat = 1;
inline constexpr size_t kHeaderSize = 64, kEntrySize = 40, kNameSize = 24;

class Container {
 public:
  struct Section {
    std::string name;
    const uint8_t* data;
    size_t size;
  };

  // Throws std::system_error where the file cannot be read, std::invalid_argument where it is no sound model.
  static Container map(const std::filesystem::path& path) {
    Container out;
    out.name_ = printable(path.native(), path.native().size());
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) throw std::system_error(errno, std::generic_category(), out.name_);
    struct stat about;
    if (::fstat(file, &about) || S_ISDIR(about.st_mode)) {
      ::close(file);
      throw std::system_error(EISDIR, std::generic_category(), out.name_);
    }
    out.size_ = size_t(about.st_size);
    if (out.size_ >= kHeaderSize) {
#ifdef MAP_POPULATE
      const int flags = MAP_PRIVATE | MAP_POPULATE;
#else
      const int flags = MAP_PRIVATE;
#endif
      void* at = ::mmap(nullptr, out.size_, PROT_READ, flags, file, 0);
      if (at != MAP_FAILED) out.data_ = static_cast<const uint8_t*>(at);
      out.mapped_ = at != MAP_FAILED;
    }
    ::close(file);
    out.parse();
    return out;
  }

  static Container copy(const uint8_t* data, size_t size, std::string name) {
    Container out;
    out.name_ = std::move(name);
    out.bytes_.resize((size + 7) / 8 + 8);  // 64-bit words, for alignment
    std::memcpy(out.bytes_.data(), data, size);
    out.data_ = reinterpret_cast<const uint8_t*>(out.bytes_.data());
    out.size_ = size;
    out.parse();
    return out;
  }

  Container(Container&& other) noexcept { *this = std::move(other); }
  Container& operator=(Container&& other) noexcept {
    std::swap(name_, other.name_);
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    std::swap(sections_, other.sections_);
    return *this;
  }
  ~Container() {
    if (mapped_) ::munmap(const_cast<uint8_t*>(data_), size_);
  }

  const std::string& name() const { return name_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  const std::vector<Section>& sections() const { return sections_; }

  [[noreturn]] void refuse(const std::string& field, const std::string& reason) const {
    throw std::invalid_argument(name_ + ": " + field + " " + reason);
  }

  const Section* find(const std::string& name) const {
    for (const Section& s : sections_) {
      if (s.name == name) return &s;
    }
    return nullptr;
  }

  template <class T>
  const T* array(const std::string& name, size_t& count) const {
    const Section* s = find(name);
    if (!s) refuse("section \"" + name + "\"", "is missing");
    if (s->size % sizeof(T)) refuse("section \"" + name + "\"", "has a wrong size");
    count = s->size / sizeof(T);
    return reinterpret_cast<const T*>(s->data);
  }

  template <class T>
  const T* array_of(const std::string& name, size_t count) const {
    size_t found = 0;
    const T* data = array<T>(name, found);
    if (found != count) {
      refuse("section \"" + name + "\"",
             "has " + std::to_string(found) + " items where " + std::to_string(count) + " are needed");
    }
    return data;
  }

 private:
  Container() = default;

  template <class T>
  T read(size_t at) const {
    T value;
    std::memcpy(&value, data_ + at, sizeof value);
    return value;
  }

  void parse() {
    if (size_ < kHeaderSize || !data_) refuse("the header", "is truncated, or this is no model file");
    if (std::memcmp(data_, "CWSMODEL", 8)) refuse("the magic", "is not that of a model file");
    const uint32_t version = read<uint32_t>(8), count = read<uint32_t>(12);
    if (crc32c(data_, 28) != read<uint32_t>(28)) refuse("the header", "does not fit its checksum");
    if (version > kFormat) {
      refuse("the version", std::to_string(version) + " is newer than " + std::to_string(kFormat) +
                                ", the newest that is understood; upgrade cws-multidomain");
    }
    if (version == 0) refuse("the version", "is 0");
    if (read<uint64_t>(16) != size_) {
      refuse("the size", "should be " + std::to_string(read<uint64_t>(16)) + " bytes but is " + std::to_string(size_) +
                             ": the file is truncated or has something appended");
    }
    if (crc32c(data_ + kHeaderSize, size_ - kHeaderSize) != read<uint32_t>(24)) {
      refuse("the content", "does not fit its checksum");
    }
    if (count > (size_ - kHeaderSize) / kEntrySize) refuse("the number of sections", "is too large for the file");
    for (size_t i = 0; i < count; ++i) {
      const size_t entry = kHeaderSize + i * kEntrySize;
      const char* name = reinterpret_cast<const char*>(data_ + entry);
      const uint64_t offset = read<uint64_t>(entry + kNameSize), size = read<uint64_t>(entry + kNameSize + 8);
      std::string known(name, strnlen(name, kNameSize));
      const std::string quoted = printable(known);
      if (quoted != known) refuse("the name of section \"" + quoted + "\"", "is no printable UTF-8");
      if (offset > size_ || size > size_ - offset || offset % 64) {
        refuse("section \"" + known + "\"", "lies outside of the file");
      }
      sections_.push_back({std::move(known), data_ + offset, size});
    }
  }

  std::string name_;
  std::vector<uint64_t> bytes_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;
  std::vector<Section> sections_;
};

}  // namespace cws
