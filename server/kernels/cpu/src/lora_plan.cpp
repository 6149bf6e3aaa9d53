#include <algorithm>

#include "lora.h"

namespace {

constexpr int64_t kShrinkPiece = 48;   // rows of x that are multiplied by A together: they stay in the L2 cache
constexpr int64_t kChangePiece = 64;   // outputs of a change that are given to a thread together, of one or two rows
constexpr int64_t kRowsPerFetch = 12;  // reading a page from memory costs about as much as using it for so many rows

bool same_mix(const Lora& lora, int64_t one, int64_t other) {
  const int64_t a = lora.start[one];
  const int64_t b = lora.start[other];
  const int64_t count = lora.start[one + 1] - a;
  if (lora.start[other + 1] - b != count) return false;
  for (int64_t i = 0; i < count; i++) {
    if (lora.adapter[a + i] != lora.adapter[b + i] || lora.weight[a + i] != lora.weight[b + i]) return false;
  }
  return true;
}

// Whether an adapter of the mix adds outputs to their partners.
bool pairs_outputs(const Lora& lora, int64_t entry, int64_t entry_end) {
  for (int64_t e = entry; e < entry_end; e++) {
    if (lora.partner[lora.adapter[e]] != nullptr) return true;
  }
  return false;
}

// How many of `count` units, each costing `unit`, lie before place `at`.
int64_t units_before(int64_t at, int64_t unit, int64_t count) {
  return std::clamp<int64_t>((at + unit / 2) / unit, 0, count);
}

int64_t cost_of_rank(int64_t rows) { return kRowsPerFetch + rows; }

}  // namespace

void LoraStep::build(const Lora* mixes, const bf16* pages, const Step& step, int64_t columns, int64_t inputs) {
  lora = mixes;
  pool = pages;
  output_stride = columns;
  input_columns = inputs;
  segments.clear();
  segment_of.clear();
  direct_row.clear();
  direct_rows = pieces = max_pairs = max_entries = max_changes = 0;
  any_direct = any_tiled = any_vectors = any_norms = false;
  scaled_row.clear();
  scaled_from.clear();
  if (mixes == nullptr) return;
  for (int64_t s = 0; s < step.sequences;) {
    int64_t last = s + 1;
    while (last < step.sequences && same_mix(*mixes, s, last)) last++;
    const int64_t row = step.query_start[s];
    const int64_t rows = step.query_start[last] - row;
    const int64_t entry = mixes->start[s];
    const int64_t entry_end = mixes->start[s + 1];
    const bool pairs = pairs_outputs(*mixes, entry, entry_end);
    const bool direct = pairs || (entry < entry_end && rows <= kDirectRows);
    const int64_t piece = pairs ? kDirectRows : rows;
    for (int64_t r = 0; r < rows; r += piece) add_segment({row + r, std::min(piece, rows - r), entry, entry_end, direct});
    s = last;
  }
  change_pair = kMaxSiteModules * max_pairs;
  const int64_t all_pairs = change_pair + max_changes * (columns / 2 + kMaxSiteModules * kRankUnit / 2);
#if defined(ML_TILES)
  t_stride = 2 * all_pairs;
#else
  t_stride = 2 * step.rows;
#endif
  t.reserve(2 * all_pairs * step.rows);
  any_direct = direct_rows > 0;
  outputs.reserve(direct_rows * output_stride);
  for (int64_t a = 0; a < mixes->adapters; a++) {
    any_vectors = any_vectors || mixes->gain[a] != nullptr || mixes->constant[a] != nullptr || mixes->input_gain[a] != nullptr ||
                  mixes->change[a] != nullptr || mixes->partner[a] != nullptr || mixes->input_blocks[a] != nullptr;
  }
  for (int64_t a = 0; a < mixes->adapters; a++) any_norms = any_norms || mixes->gain[a] != nullptr;
  if (any_vectors) find_scaled(step, inputs);
}

void LoraStep::add_segment(const LoraSegment& segment) {
  segment_of.insert(segment_of.end(), static_cast<size_t>(segment.rows), static_cast<int32_t>(segments.size()));
  for (int64_t i = 0; i < segment.rows; i++) direct_row.push_back(segment.direct ? direct_rows++ : kNotDirect);
  segments.push_back(segment);
  any_tiled = any_tiled || segment.tiled();
  pieces += (segment.rows + kShrinkPiece - 1) / kShrinkPiece;
  int64_t pairs = 0;
  int64_t changes = 0;
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    pairs += pairs_of(lora->max_rank[lora->adapter[e]]);
    changes += lora->change[lora->adapter[e]] != nullptr;
  }
  max_changes = std::max(max_changes, changes);
  max_pairs = std::max(max_pairs, pairs);
  max_entries = std::max(max_entries, segment.entry_end - segment.entry);
}

LoraPages pages_of(const LoraStep& step, const LoraSite& site, int64_t entry, int64_t module) {
  const int64_t adapter = step.lora->adapter[entry];
  const int64_t rank = step.lora->rank[adapter][site.module + module];
  const bf16* a = step.pool + step.lora->offset[adapter][site.module + module];
  return {a, a + rank * round_up(site.in, kPageAlign), rank};
}

void LoraShare::reserve(const LoraStep& step) {
  const size_t pages = step.segments.size() * static_cast<size_t>(kMaxSiteModules * step.max_entries);
  shrink.reserve(static_cast<size_t>(step.pieces * kMaxSiteModules * (step.max_entries + step.max_changes)));
  direct.reserve(step.segments.size() * kMaxSiteModules);
  ranges.reserve(2 * pages + 1);
}

void LoraScratch::reserve(const LoraStep& step) {
  for (std::vector<LoraVectors>& list : vectors) list.reserve(static_cast<size_t>(step.max_entries));
  panel.reserve(2 * kDirectRows * step.output_stride);
  const int64_t pairs = std::max(step.max_pairs, step.max_changes > 0 ? pairs_of(step.output_stride) : 0);
  t.reserve(2 * kDirectRows * pairs);
#if defined(ML_TILES)
  t_stride = 2 * pairs;
  chains.reserve(2 * kDirectRows * step.output_stride);
  turned.reserve(16 * step.input_columns);
#else
  t_stride = 2 * kDirectRows;
#endif
}

namespace {

// Walks over all work of a site in one order, with costs, and hands the units that fall to [begin, end) of
// the line to the share.
class Splitter {
 public:
  Splitter(const LoraStep& step, const LoraSite& site, LoraShare& share) : step_(step), site_(site), share_(share) {}

  int64_t total() {
    begin_ = end_ = 0;
    walk();
    return at_;
  }

  void fill(const Range& range) {
    begin_ = range.begin;
    end_ = range.end;
    walk();
  }

 private:
  void walk() {
    at_ = 0;
    for (const LoraSegment& segment : step_.segments) {
      if (segment.direct) place_direct(segment);
      if (!segment.tiled()) continue;
      for (int64_t row = segment.row; row < segment.end(); row += kShrinkPiece) {
        place_shrink(segment, row, std::min(kShrinkPiece, segment.end() - row));
      }
    }
  }

  // Units [first, last) of `count`, each costing `unit`, belong to the range.
  Range mine(int64_t unit, int64_t count) {
    const Range units{units_before(begin_ - at_, unit, count), units_before(end_ - at_, unit, count)};
    at_ += unit * count;
    return units;
  }

  void place_direct(const LoraSegment& segment) {
    const int64_t together = site_.interleaved() ? site_.modules : 1;
    for (int64_t m = 0; m < site_.modules; m += together) {
      const int64_t columns = site_.part_of(m);
      int64_t elements = site_.in;
      int64_t changes = 0;
      for (int64_t k = m; k < m + together; k++) {
        elements += rank_of(segment, k) * (site_.in + site_.out[k]);
        if (step_.max_changes > 0) changes += count_changes(step_, site_, segment, k) * (site_.out[k] / columns);
      }
      const int64_t pieces = changes > 0 ? (columns + kChangePiece - 1) / kChangePiece : 1;
      elements = elements / pieces + changes * kChangePiece * site_.in;
      const Range units = mine(elements * cost_of_rank(segment.rows), pieces);
      if (units.begin == units.end) continue;
      const int64_t piece = pieces > 1 ? kChangePiece : columns;
      const DirectItem item{&segment, m, m + together, units.begin * piece, std::min(units.end * piece, columns)};
      share_.direct.push_back(item);
      for (int64_t k = m; k < item.module_end; k++) {
        list_pages(segment, k);
        if (changes > 0) list_changes(item, k);
      }
    }
  }

  void list_changes(const DirectItem& item, int64_t m) {
    const int64_t length = round_up(site_.in, kPageAlign);
    const int64_t bytes = (item.end - item.begin) * length * static_cast<int64_t>(sizeof(bf16));
    for (int64_t e = item.segment->entry; e < item.segment->entry_end; e++) {
      const bf16* change = vectors_of(step_, site_, e, m).change;
      if (change == nullptr) continue;
      for (int64_t from = item.begin; from < site_.out[m]; from += site_.part_of(m)) {
        share_.ranges.push_back({reinterpret_cast<const char*>(change + from * length), bytes});
      }
    }
  }

  int64_t rank_of(const LoraSegment& segment, int64_t m) const {
    int64_t rank = 0;
    for (int64_t e = segment.entry; e < segment.entry_end; e++) rank += pages_of(step_, site_, e, m).rank;
    return rank;
  }

  void list_pages(const LoraSegment& segment, int64_t m) {
    const int64_t length = round_up(site_.in, kPageAlign) + round_up(site_.out[m], kPageAlign);
    for (int64_t e = segment.entry; e < segment.entry_end; e++) {
      const LoraPages pages = pages_of(step_, site_, e, m);
      const int64_t bytes = pages.rank * length * static_cast<int64_t>(sizeof(bf16));
      if (bytes > 0) share_.ranges.push_back({reinterpret_cast<const char*>(pages.a), bytes});
    }
  }

  void place_shrink(const LoraSegment& segment, int64_t row, int64_t rows) {
    int64_t t_pair = 0;
    for (int64_t m = 0; m < site_.modules; m++) {
      for (int64_t e = segment.entry; e < segment.entry_end; e++) {
        const LoraPages pages = pages_of(step_, site_, e, m);
        place_products(row, rows, pages.a, pages.rank, t_pair, step_.lora->weight[e]);
        t_pair += pairs_of(pages.rank);
      }
    }
    if (step_.max_changes > 0) place_changes(segment, row, rows);
  }

  // Changes are shrunk like A, of which they are the rows: their products are those with x.
  void place_changes(const LoraSegment& segment, int64_t row, int64_t rows) {
    int64_t t_pair = step_.change_pair;
    for (int64_t m = 0; m < site_.modules; m++) {
      for (int64_t e = segment.entry; e < segment.entry_end; e++) {
        const LoraVectors vectors = vectors_of(step_, site_, e, m);
        if (vectors.change == nullptr) continue;
        place_products(row, rows, vectors.change, site_.out[m], t_pair, vectors.weight);
        t_pair += pairs_of(site_.out[m]);
      }
    }
  }

  // This thread's part of the products of `count` rows of a matrix, the first of which goes to t_pair.
  void place_products(int64_t row, int64_t rows, const bf16* a, int64_t count, int64_t t_pair, float weight) {
    const int64_t length = round_up(site_.in, kPageAlign);
    const Range units = mine(kRankUnit * length * cost_of_rank(rows), round_up(count, kRankUnit) / kRankUnit);
    const int64_t first = kRankUnit * units.begin;
    const int64_t ranks = std::min(kRankUnit * units.end, count) - first;
    if (ranks > 0) share_.shrink.push_back({row, rows, a + first * length, ranks, t_pair + first / 2, weight});
  }

  const LoraStep& step_;
  const LoraSite& site_;
  LoraShare& share_;
  int64_t at_ = 0;
  int64_t begin_ = 0;
  int64_t end_ = 0;
};

}  // namespace

void LoraShare::build(const LoraStep& step, const LoraSite& site, const ByteRange& following, const Worker& worker) {
  shrink.clear();
  direct.clear();
  ranges.clear();
  Splitter splitter(step, site, *this);
  splitter.fill(worker.share(splitter.total()));
  ranges.push_back(following);
  stream = ByteStream(ranges);
  stream.skip(kPagesAhead);
}
