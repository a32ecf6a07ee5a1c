// The Python module: captions in (strings, or sequences of word numbers), scores out.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

#include "ciderd.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Numbers of words: of text and of integers, which are different words.
class Numbers {
  public:
    std::uint32_t of(std::string_view text) {
        key_.assign(text);
        const auto [place, fresh] = texts_.try_emplace(key_, next_);
        next_ += fresh;
        return place->second;
    }
    std::uint32_t of(long long number) {
        const auto [place, fresh] = integers_.try_emplace(number, next_);
        next_ += fresh;
        return place->second;
    }
    std::uint32_t of(nb::handle word) {
        if (PyUnicode_Check(word.ptr())) return of(view(word));
        const long long number = PyLong_AsLongLong(word.ptr());
        if (number == -1 && PyErr_Occurred()) throw nb::python_error();
        return of(number);
    }
    // A string is split at white space as Python's str.split does.
    void read(nb::handle caption, p2c::Words& words) {
        words.clear();
        if (!PyUnicode_Check(caption.ptr())) {
            for (nb::handle word : nb::iter(caption)) words.push_back(of(word));
            return;
        }
        const std::string_view text = view(caption);
        bool plain = true;
        for (const char c : text) plain = plain && static_cast<unsigned char>(c) < 0x80;
        if (!plain) {  // Unicode has white space of its own: Python knows it
            for (nb::handle word : caption.attr("split")()) words.push_back(of(view(word)));
            return;
        }
        std::size_t i = 0;
        while (i < text.size()) {
            while (i < text.size() && blank(text[i])) ++i;
            const std::size_t begin = i;
            while (i < text.size() && !blank(text[i])) ++i;
            if (i > begin) words.push_back(of(text.substr(begin, i - begin)));
        }
    }

  private:
    static bool blank(char c) { return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31); }
    static std::string_view view(nb::handle text) {
        Py_ssize_t size = 0;
        const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
        if (data == nullptr) throw nb::python_error();
        return {data, static_cast<std::size_t>(size)};
    }

    std::unordered_map<std::string, std::uint32_t> texts_;
    std::unordered_map<long long, std::uint32_t> integers_;
    std::uint32_t next_ = 1;
    std::string key_;
};

class CiderD {
  public:
    CiderD(nb::handle frequencies, double log_documents, double sigma)
        : scorer_(log_documents, sigma) {
        p2c::Words words;
        for (nb::handle item : frequencies.attr("items")()) {
            words.clear();
            for (nb::handle word : nb::iter(item[0])) words.push_back(numbers_.of(word));
            if (words.empty() || words.size() > 4)
                throw std::invalid_argument("frequencies: allowed is n-grams of 1 to 4 words");
            scorer_.add_frequency(words, nb::cast<double>(nb::object(item[1])));
        }
    }
    std::size_t add(nb::handle references) {
        std::vector<p2c::Words> lines;
        for (nb::handle reference : nb::iter(references)) {
            lines.emplace_back();
            numbers_.read(reference, lines.back());
        }
        return scorer_.add_image(lines);
    }
    double score(std::size_t image, nb::handle caption) {
        if (image >= scorer_.images()) throw std::out_of_range("image: no such number");
        numbers_.read(caption, words_);
        return scorer_.score(image, words_);
    }
    std::vector<double> scores(const std::vector<std::size_t>& images, nb::handle captions) {
        std::vector<double> found;
        found.reserve(images.size());
        for (nb::handle caption : nb::iter(captions)) {
            if (found.size() == images.size())
                throw std::invalid_argument("captions: more than images");
            found.push_back(score(images[found.size()], caption));
        }
        if (found.size() != images.size())
            throw std::invalid_argument("captions: fewer than images");
        return found;
    }

  private:
    Numbers numbers_;
    p2c::Scorer scorer_;
    p2c::Words words_;
};

}  // namespace

NB_MODULE(_native, m) {
    nb::class_<CiderD>(m, "CiderD")
        .def(nb::init<nb::handle, double, double>(), "frequencies"_a, "log_documents"_a, "sigma"_a)
        .def("add", &CiderD::add, "references"_a)
        .def("score", &CiderD::score, "image"_a, "caption"_a)
        .def("scores", &CiderD::scores, "images"_a, "captions"_a);
}
