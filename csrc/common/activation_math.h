// Activation maths, one copy for every value type: forward and backward, CPU vectors and CUDA scalars.
//
// Included inside a namespace that defines sigmoid(V) and select_le(a, b, x, y) (x where a ≤ b, else y) for its value
// types, and EK_INLINE; hence no include guard. Comparisons are written so that NaN reaches the result.

template <class V>
struct ValueAndDerivative {
  V value;
  V derivative;
};

template <class V>
EK_INLINE V clamp_0_6(V v) {
  const V low = V::broadcast(0), high = V::broadcast(6);
  return select_le(v, low, low, select_le(high, v, high, v));
}

template <Activation A, class V>
EK_INLINE ValueAndDerivative<V> activate_with_derivative(V v) {
  const V zero = V::broadcast(0), one = V::broadcast(1), three = V::broadcast(3), sixth = V::broadcast(1.0 / 6);
  if constexpr (A == Activation::identity) {
    return {v, one};
  } else if constexpr (A == Activation::relu) {
    return {select_le(v, zero, zero, v), select_le(v, zero, zero, one)};
  } else if constexpr (A == Activation::relu6) {
    const V six = V::broadcast(6);
    return {clamp_0_6(v), select_le(v, zero, zero, select_le(six, v, zero, one))};
  } else if constexpr (A == Activation::silu) {
    const V gate = sigmoid(v);
    return {v * gate, gate * (one + v * (one - gate))};
  } else if constexpr (A == Activation::hardswish) {
    const V slope = v * V::broadcast(1.0 / 3) + V::broadcast(0.5);
    const V inner = select_le(three, v, one, slope);
    return {v * clamp_0_6(v + three) * sixth, select_le(v, zero - three, zero, inner)};
  } else if constexpr (A == Activation::sigmoid) {
    const V gate = sigmoid(v);
    return {gate, gate * (one - gate)};
  } else {
    static_assert(A == Activation::hardsigmoid);
    const V inner = select_le(three, v, zero, sixth);
    return {clamp_0_6(v + three) * sixth, select_le(v, zero - three, zero, inner)};
  }
}

// The compiler drops the unused derivative, so forward and backward share one definition.
template <Activation A, class V>
EK_INLINE V activate(V v) {
  return activate_with_derivative<A>(v).value;
}
