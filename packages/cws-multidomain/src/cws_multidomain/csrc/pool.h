#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

// Threads live as long as the call that needs them: nothing is left behind that a fork could break.
namespace cws {

// Calls work(task, worker) for all tasks, 0 first; of several exceptions, that of the first task is thrown.
template <class Work>
void parallel_for(int64_t tasks, int threads, Work work) {
  threads = int(std::min<int64_t>(threads, tasks));
  std::atomic<int64_t> next{0};
  std::vector<std::exception_ptr> errors(tasks > 0 ? tasks : 0);
  std::atomic<bool> failed{false};
  const auto run = [&](int worker) {
    for (int64_t task; !failed && (task = next++) < tasks;) {
      try {
        work(task, worker);
      } catch (...) {
        errors[task] = std::current_exception();
        failed = true;
      }
    }
  };
  std::vector<std::thread> others;
  for (int worker = 1; worker < threads; ++worker) {
    try {
      others.emplace_back(run, worker);
    } catch (const std::system_error&) {
      break;  // no more threads are to be had; those that are there do the work
    }
  }
  run(0);
  for (std::thread& t : others) t.join();
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace cws
