// The C interface of the library. abi.py mirrors every struct here field by field; manylora_struct_size
// lets it check that both sides agree.
#pragma once

#include <cstdint>

#include "simd.h"

#pragma GCC visibility push(default)
extern "C" {

// How the codes of a matrix stand for its weights. A kind is what a kernel has to know of them, not which library or
// file they came from. Whoever adds one writes its unpack functions (unpack.h) and its packers (packed_codes.py).
enum MatrixKind {
  kPlain = 0,    // the codes are the weights: packed bf16 (pack.h)
  kNibbles = 1,  // 4-bit codes: table[code] * scale
  kBytes = 2,    // signed 8-bit codes: (code * scale) * factor
  kShifted = 3,  // 4-bit codes: (table[code] - offset) * scale
  kAdded = 4,    // 4-bit codes: table[code] * scale + offset
  kAddedBytes = 5,  // signed 8-bit codes: code * scale + offset
  kSeveral = 6,  // parts of other kinds along out: `codes` is a PackedMatrix of each, `group` how many there are
};

// A matrix [outputs, inputs] in blocks of 32 outputs. Every weight is computed in fp32 by its kind's formula, operation
// by operation as written, and rounded to bf16 once.
struct PackedMatrix {
  const void* codes;     // [blocks][codes of a block], as the kind lays them out
  const float* scales;   // [blocks][groups][32]: an output's in each group of inputs
  const float* offsets;  // the same, of kinds whose zero is not a code or that add a minimum; else null
  const float* table;    // [16], of kinds that have one; else null
  int64_t group;         // inputs that share a scale: a multiple of 16, or all of them
  int64_t blocks;        // of 32 outputs
  int32_t kind;          // a MatrixKind
  float factor;          // of kinds that have one; else 0
  int64_t moderate;      // whether scales and offsets are 0 or of 2^-50 to 2^50 in magnitude: products of two can be rounded as products
};

// Pointers of one decoder block. Matrices are packed (pack.h); norm weights and biases are fp32, biases
// padded with zeros to a multiple of 32 outputs. Null where the model has none.
struct Layer {
  const float* input_norm;   // [hidden] of attention's input
  PackedMatrix qkv;          // [(heads + 2 kv_heads) head_dim, hidden]
  const float* qkv_bias;
  const float* q_norm;       // [head_dim], or [heads head_dim]
  const float* k_norm;       // [head_dim], or [kv_heads head_dim]
  PackedMatrix o;            // [hidden, heads head_dim]
  const float* o_bias;
  const float* post_norm;    // [hidden] of the MLP's input
  PackedMatrix gate_up;      // [2 intermediate, hidden], 16 gate and 16 up outputs a block
  const float* gate_up_bias; // in the packed order
  PackedMatrix down;         // [hidden, intermediate]
  const float* down_bias;
  int64_t window;            // keys a row attends to, itself included; 0: all
  const float* attention_norm; // [hidden] of attention's output, before it is added
  const float* mlp_norm;     // [hidden] of the MLP's output, before it is added
  const float* cos;          // [positions][turned / 2]; null: positions don't turn the layer's queries and keys
  const float* sin;
  const bf16* router;        // packed [experts, hidden]; null: an MLP for all rows, else experts in its place
  const bf16* const* expert_gate_up;  // [experts] packed as gate_up
  const bf16* const* expert_down;     // [experts] packed as down
};

// Activations of the gate.
enum Activation { kSilu = 0, kGeluTanh = 1 };

struct Decoder {
  const Layer* layer;        // [layers]
  const bf16* embedding;     // [vocab, hidden]
  const float* final_norm;   // [hidden]
  PackedMatrix lm_head;      // [vocab, hidden]
  const bf16* pool;          // rank pages of every resident adapter
  int64_t pool_elements;
  int64_t layers;
  int64_t hidden;
  int64_t intermediate;      // of an MLP
  int64_t vocab;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t positions;
  int64_t num_blocks;        // KV blocks to reserve
  int64_t max_rows;          // rows the workspace starts with; it grows when a step needs more
  int64_t threads;
  int64_t kv_coded;          // whether keys and values are kept in 8 bits; else as they are
  float eps;
  float scale;               // of the attention scores
  float score_cap;           // bounds attention scores s by c tanh(s / c); 0: nothing does
  float embedding_scale;
  float residual_scale;      // of what attention and MLP add
  float logit_scale;
  float logit_cap;           // of the scaled logits; 0: none
  int64_t turned;            // the first dimensions of a head, which rotary tables are for
  int64_t activation;
  int64_t qkv_modules;       // that adapters address: 3, or 1 for all of the matrix
  int64_t gate_up_modules;   // 2, or 1
  int64_t joint_qk_norm;     // whether q_norm and k_norm are of all heads together
  int64_t experts;           // of a layer that has a router; 0: none has
  int64_t expert_intermediate;
  int64_t chosen_experts;    // that a row takes
  int64_t normalized_shares; // whether the shares of a row's experts sum to 1
};

// The mixes of one step, a CSR list over its sequences.
struct Lora {
  int64_t adapters;
  // [adapters][modules], layer by layer: those of qkv, o, and without experts those of gate_up, down. Behind the norms,
  // which have none, by the layers with experts those of each expert's gate_up (gate, then up: one module) and down.
  const int64_t* const* offset;  // first element of a module's pages in the pool
  const int32_t* const* rank;
  const int32_t* max_rank;       // [adapters] largest of an adapter's ranks
  const int32_t* max_expert_rank;  // [adapters] largest of its ranks at experts
  // [adapters] null where no module has one, or [modules, then norms] first element of a vector in the pool, 0: none.
  // A row computes y + sum of weight (gain y + constant) + W (sum of weight input_gain x), y with the base's bias, and
  // of a norm (w + sum of weight gain) times x / rms(x). Norms are numbered layer by layer, those that the model has of
  // (input, q, k, attention, post, mlp); the final one is the last.
  const int64_t* const* gain;
  const int64_t* const* constant;
  const int64_t* const* input_gain;
  const int64_t* const* change;  // likewise of matrices [out][in], the product of which with x is added, weighted
  // Likewise of vectors [out], which multiply the partners of outputs: of outputs in groups of 2 d the first d have the
  // second d as partners, d being the module's number in `distance`.
  const int64_t* const* partner;
  const int64_t* const* distance;
  // Likewise of matrices [in][b], one [b][b] below the other: x times them is added to the scaled input, b being the
  // module's number in `block_size`, a multiple of 32. The last one may have fewer rows.
  const int64_t* const* input_blocks;
  const int64_t* const* block_size;
  const int32_t* start;          // [sequences + 1]
  const int32_t* adapter;        // [entries] index into the adapters
  const float* weight;           // [entries]
};

struct Step {
  int64_t rows;
  int64_t sequences;
  int64_t table_width;
  int64_t logits_count;
  const int64_t* token_ids;      // [rows]
  const int64_t* positions;      // [rows]
  const int64_t* slots;          // [rows]
  const int32_t* query_start;    // [sequences + 1]
  const int32_t* context;        // [sequences]
  const int32_t* block_tables;   // [sequences][table_width]
  const int64_t* logits_rows;    // [logits_count]
  const Lora* lora;              // null when every sequence runs the base
  float* logits;                 // [logits_count][vocab rounded up to 32]
  int64_t given_count;
  const int64_t* given_rows;     // [given_count] ascending: rows whose embeddings are given
  const float* given;            // [given_count][hidden] not to be scaled
  bf16* final_hidden;            // [logits_count][hidden] filled with what the head is applied to. Or null
  const Layer* layer;            // [layers] in place of the decoder's, windows the same; null: the decoder's
  const float* final_norm;       // [hidden] in place of the decoder's; null: the decoder's
  int64_t raw_logits;            // not 0: the head's product alone, for the caller to correct, scale and bound
};

// How the next token of each row is drawn.
struct Draw {
  int64_t rows;
  int64_t width;               // tokens of the vocabulary
  const float* const* logits;  // [rows][width]
  const float* temperature;    // [rows] 0: the likeliest token, the first of equal ones
  const int64_t* top_k;        // [rows] 0: all
  const double* top_p;         // [rows] 1: all
  const float* min_p;          // [rows] 0: all
  const double* uniform;       // [rows] in [0, 1): which of the kept tokens
  const uint32_t* const* allowed;  // [rows] bit t % 32 of word t / 32: token t may be drawn; null, also a row's: all may
  int64_t* tokens;             // [rows] the result
};

// What manylora_step or manylora_draw found wrong; 0 is success.
enum StepFault {
  kStepDone = 0,
  kBadToken = 1,
  kBadPosition = 2,
  kBadSlot = 3,
  kBadBlock = 4,
  kBadSequence = 5,
  kBadLogitsRow = 6,
  kBadAdapter = 7,
  kOutOfMemory = 8,
  kBadGivenRow = 9,
  kBadEntry = 10,
};

struct Engine;
struct Sampler;

int64_t manylora_struct_size(int which);  // 0 Layer, 1 Decoder, 2 Lora, 3 Step, 4 Draw, 5 PackedMatrix
Engine* manylora_open(const Decoder* decoder);  // null when memory is short; copies the struct and its layers
void manylora_close(Engine* engine);
int manylora_step(Engine* engine, const Step* step);

// Copies keys and values of `count` positions, [layers][2][kv_heads][head_dim] each from element `start` of the
// pool on, to these slots of the KV cache. A StepFault; on one nothing is written.
int manylora_fill_cache(Engine* engine, const int64_t* slots, int64_t count, int64_t start);

Sampler* manylora_open_sampler(int64_t threads);  // null when memory is short
void manylora_close_sampler(Sampler* sampler);
int manylora_draw(Sampler* sampler, const Draw* draw);

// Asks for huge pages behind memory that will be streamed: with small ones every few lines cost a TLB miss.
void manylora_prefer_huge_pages(void* memory, int64_t bytes);

// Row-major [outputs, inputs] to the packed form; see pack.h.
void manylora_pack(const bf16* matrix, bf16* packed, int64_t outputs, int64_t inputs);
void manylora_pack_gate_up(const bf16* matrix, bf16* packed, int64_t intermediate, int64_t inputs);

// Whether codes lie with the inputs of a step apart (codes_apart.h), or in the order of packed bf16.
int manylora_inputs_apart();

// The weights of a matrix in the packed form of plain ones, whatever its kind.
void manylora_unpack(const PackedMatrix* matrix, bf16* packed, int64_t outputs, int64_t inputs);

// Single kernels, for their parity tests.
void manylora_gemm(const bf16* x, const bf16* packed, float* y, int64_t rows, int64_t outputs, int64_t inputs,
                   int64_t threads);
void manylora_exp(const float* x, float* y, int64_t count);  // count a multiple of 16
}
#pragma GCC visibility pop
