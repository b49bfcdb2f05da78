// The exponential and the activations made of it: exp.rs, step for step.

#pragma once
#include "card/card.cuh"

DEVICE float exp_of(float x) {
  const float lowest = -87.0f, highest = 88.0f;
  const float clamped = lowest > x ? lowest : x;
  const float negated = 0.0f - clamped;
  const float flipped = -highest > negated ? -highest : negated;
  const float y = 0.0f - flipped;
  const float n = rintf(y * 1.44269504088896340736f);
  float r = fmaf(n, -0.6933594f, y);
  r = fmaf(n, 2.1219444e-4f, r);
  float tail = 0.0013933688f;
  tail = fmaf(tail, r, 0.008363205f);
  tail = fmaf(tail, r, 0.041666463f);
  tail = fmaf(tail, r, 0.16666576f);
  tail = fmaf(tail, r, 0.5f);
  const float grown = fmaf(r * r, tail, r) + 1.0f;
  const float power = __int_as_float((int)((unsigned)((int)n + 127) << 23));
  return x < lowest ? 0.0f : grown * power;
}

DEVICE float silu(float x) { return x / (1.0f + exp_of(0.0f - x)); }

DEVICE float gelu_tanh(float x) {
  const float root = 0.7978846f;
  const float cube = x * x * x;
  const float inner = fmaf(cube, 0.044715f, x);
  return x / (1.0f + exp_of(inner * (-2.0f * root)));
}
