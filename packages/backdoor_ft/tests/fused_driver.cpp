// Every kernel of this processor over odd shapes, in buffers of exactly the right size, so that a
// sanitizer sees a read or write past an end. Kernels must agree to the bit.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../csrc/kernels.hpp"

int main(int argc, char**) {
    using namespace backdoor_ft;
    std::mt19937 draw(0);
    int ran = 0;
    const std::int64_t shapes[][5] = {{1, 1, 1, 1, 0}, {3, 8, 8, 1, 1},   {2, 7, 13, 3, 2},
                                      {5, 32, 32, 3, 4}, {4, 16, 17, 3, 0}, {2, 5, 33, 2, 3},
                                      {3, 64, 15, 1, 5}, {2, 9, 64, 4, 1}};
    for (auto& s : shapes) {
        const auto n = s[0], h = s[1], w = s[2], c = s[3], pad = s[4];
        std::unique_ptr<std::uint8_t[]> images(new std::uint8_t[n * h * w * c]);
        std::unique_ptr<std::uint8_t[]> pattern(new std::uint8_t[h * w * c]);
        std::unique_ptr<std::int32_t[]> alpha(new std::int32_t[h * w * c]);
        std::unique_ptr<std::int64_t[]> draws(new std::int64_t[n * 3]);
        std::unique_ptr<std::uint8_t[]> stamped(new std::uint8_t[n]);
        const auto entries = argc > 1 ? 1 : c * 256;  // with an argument: too short, to be caught
        std::unique_ptr<float[]> table(new float[entries]);
        for (std::int64_t i = 0; i < n * h * w * c; ++i) images[i] = draw() & 255;
        for (std::int64_t i = 0; i < h * w * c; ++i) {
            pattern[i] = draw() & 255;
            alpha[i] = draw() % 257;
        }
        for (std::int64_t i = 0; i < n; ++i) {
            draws[3 * i] = draw() % (2 * pad + 1);
            draws[3 * i + 1] = draw() % (2 * pad + 1);
            draws[3 * i + 2] = draw() & 1;
            stamped[i] = draw() & 1;
        }
        for (std::int64_t i = 0; i < entries; ++i) table[i] = static_cast<float>(draw()) / 1e9f;
        std::vector<float> first;
        for (std::string name : {"portable", "avx2", "avx512"}) {
            if (!available(name)) continue;
            std::unique_ptr<float[]> out(new float[n * c * h * w]);
            Batch batch{images.get(), draws.get(), stamped.get(), pattern.get(), alpha.get(),
                        table.get(), out.get(), n, h, w, c, pad};
            choose(name)(batch, 0, n);
            if (first.empty()) first.assign(out.get(), out.get() + n * c * h * w);
            if (std::memcmp(first.data(), out.get(), first.size() * sizeof(float)) != 0) {
                std::printf("%s differs\n", name.c_str());
                return 1;
            }
            ++ran;
        }
    }
    std::printf("%d runs\n", ran);
    return ran ? 0 : 1;
}
