// What the compiler makes of OpenMP's parallel regions, run by plain threads: linked into a library that is
// checked for races in place of the compiler's OpenMP runtime, whose own barriers the checker cannot see.
#include <thread>
#include <vector>

namespace {

constexpr unsigned kThreads = 2;  // of a region that does not ask for a number
thread_local int own_number = 0;
thread_local int team_size = 1;

void run(void (*region)(void*), void* data, int number, int count) {
  own_number = number;
  team_size = count;
  region(data);
  own_number = 0;
  team_size = 1;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*region)(void*), void* data, unsigned threads, unsigned) {
  const int count = static_cast<int>(threads == 0 ? kThreads : threads);
  std::vector<std::thread> team;
  for (int number = 1; number < count; number++) team.emplace_back(run, region, data, number, count);
  run(region, data, 0, count);
  for (std::thread& thread : team) thread.join();
}

int omp_get_thread_num() { return own_number; }
int omp_get_num_threads() { return team_size; }
}
