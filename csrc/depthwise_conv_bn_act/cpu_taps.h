// The arithmetic of both depthwise kernels on rows in scratch memory, for one vector of channels (channels_last) or of
// pixels (NCHW): a tap is a source and a weight vector. Included per instruction set by foreach_capability.h.

template <class A>
struct Tap {
  const A *source, *weight;
};

// out[j] = Σ_t weight_t · source_t[j] for R vectors, kept in registers over all taps; returns Σ_j out[j].
template <int R, class A>
EK_INLINE Vec<A> apply_taps_to(const Tap<A>* taps, int count, int64_t shift, int64_t source_at, int64_t source_step,
                               A* out, int64_t out_step) {
  Vec<A> sums[R];
  for (int r = 0; r < R; ++r) sums[r] = Vec<A>::zero();
  for (int t = 0; t < count; ++t) {
    const Vec<A> weight = load(taps[t].weight + shift, AllLanes{});
    const A* const source = taps[t].source + shift + source_at;
    for (int r = 0; r < R; ++r) sums[r] += weight * load(source + r * source_step, AllLanes{});
  }
  Vec<A> total = Vec<A>::zero();
  for (int r = 0; r < R; ++r) {
    store(out + r * out_step, sums[r], AllLanes{});
    total += sums[r];
  }
  return total;
}

// out[j] = Σ_t weight_t · source_t[j] for `vectors` vectors; `shift` selects the vector of the block. Returns Σ_j out[j].
template <class A>
Vec<A> apply_taps(const Tap<A>* taps, int count, int64_t shift, int64_t vectors, int64_t source_step, A* out,
                  int64_t out_step) {
  int64_t j = 0;
  Vec<A> total = Vec<A>::zero();
  const auto run = [&](auto registers) {
    constexpr int R = registers();
    total += apply_taps_to<R>(taps, count, shift, j * source_step, source_step, out + j * out_step, out_step);
    j += R;
  };
  while (j + 8 <= vectors) run(Constant<8>{});
  if (vectors - j >= 4) run(Constant<4>{});
  if (vectors - j >= 2) run(Constant<2>{});
  if (vectors - j >= 1) run(Constant<1>{});
  return total;
}

// dweight[k] += Σ_j dy[j] · a[tap_of(k) + j] for one kernel row, its K sums kept in registers.
template <int K, class A, class TapOf>
void accumulate_weight_gradient(const A* dy, int64_t dy_step, const A* a, TapOf tap_of, int64_t a_step, int64_t vectors,
                                A* dweight, int64_t dweight_step) {
  Vec<A> sums[K];
  for (int k = 0; k < K; ++k) sums[k] = load(dweight + k * dweight_step, AllLanes{});
  for (int64_t j = 0; j < vectors; ++j) {
    const Vec<A> g = load(dy + j * dy_step, AllLanes{});
    for (int k = 0; k < K; ++k) sums[k] += g * load(a + tap_of(k) + j * a_step, AllLanes{});
  }
  for (int k = 0; k < K; ++k) store(dweight + k * dweight_step, sums[k], AllLanes{});
}
