// Belady's MIN over sets: every chunk of a step must be present at once; the victim is the chunk
// outside of the step whose next use lies farthest.
#include <iterator>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels.h"

namespace elixir {

int64_t belady_loads(const int64_t* items, const int64_t* offsets, int64_t steps, int64_t chunks, int64_t blocks) {
    std::vector<std::vector<int64_t>> uses(chunks);
    for (int64_t s = 0; s < steps; ++s)
        for (int64_t i = offsets[s]; i < offsets[s + 1]; ++i) {
            if (uses[items[i]].empty() || uses[items[i]].back() != s) uses[items[i]].push_back(s);
        }
    std::vector<size_t> next(chunks, 0);
    std::vector<char> present(chunks, 0);
    std::set<std::pair<int64_t, int64_t>> queue;  // (next use, chunk) of what is present
    int64_t loads = 0, count = 0;
    for (int64_t s = 0; s < steps; ++s) {
        std::vector<int64_t> wanted;
        for (int64_t i = offsets[s]; i < offsets[s + 1]; ++i) {
            const int64_t c = items[i];
            if (next[c] < uses[c].size() && uses[c][next[c]] == s) {
                if (present[c]) queue.erase({s, c});
                ++next[c];
                wanted.push_back(c);
            }
        }
        if (static_cast<int64_t>(wanted.size()) > blocks) throw std::invalid_argument("a step needs more chunks than there are blocks");
        for (int64_t c : wanted) {
            if (present[c]) continue;
            if (count == blocks) {
                const auto victim = std::prev(queue.end());
                present[victim->second] = 0;
                queue.erase(victim);
                --count;
            }
            present[c] = 1;
            ++count;
            ++loads;
        }
        for (int64_t c : wanted) queue.insert({next[c] < uses[c].size() ? uses[c][next[c]] : steps, c});
    }
    return loads;
}

}  // namespace elixir
