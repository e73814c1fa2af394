// Array code on columns: arithmetic on a few numbers of each row, as it was written down.
//
// What the loss makes of the statistics of rows is array code, and each of its operations would be
// a launch of its own. `_kernels/columns.py` writes them down instead, for the machine below to
// carry out on each row in one launch. What they mean is the business of that array code.

enum { SLOTS = 20, STEPS = 120, CONSTANTS = 24, PLACES = 24, TOTALS = 8, SUMS = 4, LANES = 128 };

// What a step does, and on what; the names and their order are those of `_kernels/columns.py`.
enum Op {
  LOAD, TAKE, TOTAL, STORE, SUM, REAL, FINITE, EXP, LOG1P, NOT, ADD, SUBTRACT, MULTIPLY, DIVIDE,
  LESS, EQUAL, LESS_WHOLE, EQUAL_WHOLE, SUBTRACT_WHOLE, AND, OR, WHERE
};
enum Dtype { FLOAT64, FLOAT32, FLOAT16, BFLOAT16, INT64, INT32, INT16, INT8, UINT64, UINT32, UINT16,
             UINT8, BOOL };

// A number, real or whole; what is true is 1.
template <class R> union Slot {
  R real;
  i64 whole;
};

// What partial sums are made of: half as many digits are lost as in the numbers they are of.
union Part {
  double real;
  i64 whole;
};

// Memory of a number for each row, a step of 1, or of one for all, a step of 0.
struct Place {
  void* at;
  int dtype, step;
};

// Some partial sums, of reals or whole numbers.
struct Parts {
  const Part* at;
  int count, real;
};

struct Step {
  unsigned char op, to, a, b, c, padding[3];
};

template <class R> struct Columns {
  i64 count;  // of rows
  Part* parts;  // of each sum, one of each block
  int steps, totals, sums, reals;  // which sums are of reals: a bit of each
  Parts total[TOTALS];
  Place place[PLACES];
  Slot<R> constant[CONSTANTS];
  Step step[STEPS];
};

template <class R> DEVICE Slot<R> real(R x) { Slot<R> s; s.real = x; return s; }
template <class R> DEVICE Slot<R> whole(i64 x) { Slot<R> s; s.whole = x; return s; }

template <class R> DEVICE Slot<R> fetch(const Place& place, i64 i) {
  switch (place.dtype) {
    case FLOAT64: return real<R>(R(((const double*)place.at)[i]));
    case FLOAT32: return real<R>(((const float*)place.at)[i]);
    case FLOAT16: return real<R>(widen(((const float16*)place.at)[i]));
    case BFLOAT16: return real<R>(widen(((const bfloat16*)place.at)[i]));
    case INT64: case UINT64: return whole<R>(((const i64*)place.at)[i]);
    case INT32: return whole<R>(((const int*)place.at)[i]);
    case INT16: return whole<R>(((const short*)place.at)[i]);
    case INT8: return whole<R>(((const signed char*)place.at)[i]);
    case UINT32: return whole<R>(((const u32*)place.at)[i]);
    case UINT16: return whole<R>(((const u16*)place.at)[i]);
    default: return whole<R>(((const unsigned char*)place.at)[i]);
  }
}

template <class R> DEVICE void put(const Place& place, i64 i, Slot<R> x) {
  switch (place.dtype) {
    case FLOAT64: ((double*)place.at)[i] = x.real; break;
    case FLOAT32: ((float*)place.at)[i] = x.real; break;
    case FLOAT16: narrow(float(x.real), ((float16*)place.at)[i]); break;
    case BFLOAT16: narrow(float(x.real), ((bfloat16*)place.at)[i]); break;
    case INT64: ((i64*)place.at)[i] = x.whole; break;
    default: ((bool*)place.at)[i] = x.whole; break;
  }
}

// Sum partial sums by a warp, in an order that their number alone tells.
template <class T> DEVICE T sum_of(const Part* parts, int count, T Part::*number) {
  T sum = 0;
  for (int i = threadIdx.x % 32; i < count; i += 32) sum += parts[i].*number;
  return Team<true>::all(sum, Adding());
}

// Add up the totals of what was summed before.
template <class R> DEVICE void add_totals(const Columns<R>& work, Slot<R>* totals) {
  for (int k = threadIdx.x / 32; k < work.totals; k += blockDim.x / 32) {
    const Parts parts = work.total[k];
    if (parts.real) totals[k].real = R(sum_of(parts.at, parts.count, &Part::real));
    else totals[k].whole = sum_of(parts.at, parts.count, &Part::whole);
  }
}

// What one thread has: its slots and sums, so far apart, and the totals, which all share.
template <class R> struct Desk {
  const Columns<R>& work;
  Slot<R>* slots;
  int apart;
  const Slot<R>* totals;
  Part* sums;

  // An operand is a slot, or beyond those a constant.
  DEVICE Slot<R> operator[](int operand) const {
    return operand < SLOTS ? slots[operand * apart] : work.constant[operand - SLOTS];
  }

  DEVICE void carry_out(i64 row) const {
    for (int k = 0; k < work.steps; k++) {
      const Step step = work.step[k];
      switch (step.op) {
        case STORE: put(work.place[step.b], work.place[step.b].step * row, (*this)[step.a]); break;
        case SUM: add(step.b, (*this)[step.a]); break;
        default: slots[step.to * apart] = result(step, row);
      }
    }
  }

  DEVICE void add(int sum, Slot<R> x) const {
    Part& part = sums[sum * apart];
    if (work.reals >> sum & 1) part.real += x.real;
    else part.whole += x.whole;
  }

  // Rounded after each operation, as array code is: a compiler may not join two of them.
  DEVICE Slot<R> result(Step step, i64 row) const {
    if (step.op == LOAD) return fetch<R>(work.place[step.a], work.place[step.a].step * row);
    if (step.op == TOTAL) return totals[step.a];
    if (step.op == TAKE) return fetch<R>(work.place[step.a], (*this)[step.b].whole);
    const Slot<R> a = (*this)[step.a], b = (*this)[step.b];
    switch (step.op) {
      case REAL: return real<R>(R(a.whole));
      case FINITE: return whole<R>(a.real - a.real == 0);
      case EXP: return real<R>(exp(a.real));
      case LOG1P: return real<R>(log1p(a.real));
      case NOT: return whole<R>(!a.whole);
      case ADD: return real<R>(a.real + b.real);
      case SUBTRACT: return real<R>(a.real - b.real);
      case MULTIPLY: return real<R>(a.real * b.real);
      case DIVIDE: return real<R>(a.real / b.real);
      case LESS: return whole<R>(a.real < b.real);
      case EQUAL: return whole<R>(a.real == b.real);
      case LESS_WHOLE: return whole<R>(a.whole < b.whole);
      case EQUAL_WHOLE: return whole<R>(a.whole == b.whole);
      case SUBTRACT_WHOLE: return whole<R>(a.whole - b.whole);
      case AND: return whole<R>(a.whole & b.whole);
      case OR: return whole<R>(a.whole | b.whole);
      default: return a.whole ? b : (*this)[step.c];
    }
  }
};

template <class R> DEVICE void columns(const Columns<R>& work) {
  __shared__ Slot<R> slots[SLOTS][LANES];
  __shared__ Slot<R> totals[TOTALS];
  __shared__ Part sums[SUMS][LANES];
  const int thread = threadIdx.x, warp = thread / 32;
  add_totals(work, totals);
  for (int k = 0; k < work.sums; k++) sums[k][thread].whole = 0;  // of reals as well
  __syncthreads();
  const Desk<R> desk = {work, &slots[0][thread], LANES, totals, &sums[0][thread]};
  for (i64 row = (i64)blockIdx.x * LANES + thread; row < work.count; row += (i64)gridDim.x * LANES)
    desk.carry_out(row);
  __syncthreads();
  for (int k = warp; k < work.sums; k += LANES / 32) {
    Part sum;
    if (work.reals >> k & 1) sum.real = sum_of(sums[k], LANES, &Part::real);
    else sum.whole = sum_of(sums[k], LANES, &Part::whole);
    if (thread % 32 == 0) work.parts[(i64)k * gridDim.x + blockIdx.x] = sum;
  }
}

#define COLUMNS(name, R)                                      \
  extern "C" __global__ void __launch_bounds__(LANES)         \
      columns_##name(const PARAMETER Columns<R> work) {       \
    columns(work);                                            \
  }
