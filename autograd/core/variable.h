// Reverse-mode differentiation over the operators of engine/ops.
//
// A Variable is a tensor that may take part in a graph. Every differentiable operator (autograd/ops) computes its value
// with engine/ops and, while gradients are enabled, records one node: edges to its inputs and a closure that turns the
// gradient of the output into gradients of the inputs. Nodes hold edges, not values: an input's memory stays alive only
// if the closure saved it. backward() walks the nodes in reverse recording order, so every sum has one fixed order.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "engine/core/tensor.h"

namespace pm {

struct Node;

// Gradient storage of a leaf (a parameter or an input that wants one).
struct Leaf {
  Tensor grad;
};

// Where the gradient of an input goes: output `index` of a node, or a leaf, or nowhere.
struct Edge {
  std::shared_ptr<Node> node;
  int index = 0;
  std::shared_ptr<Leaf> leaf;
  bool wanted() const { return node != nullptr || leaf != nullptr; }
};

// A value kept for the backward pass: memory only, no edge into the graph.
class Saved {
 public:
  explicit Saved(Tensor tensor) : tensor_(std::move(tensor)) {}
  const Tensor& tensor() const { return tensor_; }

 private:
  Tensor tensor_;
};

class Variable {
 public:
  Variable() = default;  // undefined, e.g. an absent bias
  // A leaf. With requires_grad, backward() leaves its gradient in grad().
  explicit Variable(Tensor value, bool requires_grad = false);

  bool defined() const { return value_.defined(); }
  const Tensor& value() const { return value_; }
  const Shape& shape() const { return value_.shape(); }
  bool requires_grad() const { return edge_.wanted(); }
  const Edge& edge() const { return edge_; }
  Saved save() const { return Saved(value_); }

  // Gradient of a leaf: undefined before the first backward(), accumulated over calls until clear_grad().
  // Throws Error on a variable that is no leaf with requires_grad.
  const Tensor& grad() const;
  void clear_grad();
  // Takes up an accumulated gradient again, for example from a checkpoint: value's shape and dtype. Throws Error on a variable
  // that is no leaf with requires_grad, ShapeError, DTypeError.
  void set_grad(Tensor grad);

 private:
  friend std::vector<Variable> record_outputs(Context&, std::vector<Tensor>, std::shared_ptr<Node>);
  Tensor value_;
  Edge edge_;
};

// Collects the gradients that a closure computes. Each input gets at most one.
class GradSink {
 public:
  explicit GradSink(const std::vector<Edge>& edges) : edges_(edges), grads_(edges.size()) {}
  // Whether anybody wants the gradient of input `index`: skip the work if not.
  bool wants(size_t index) const { return edges_[index].wanted(); }
  void add(size_t index, Tensor grad) { grads_[index] = std::move(grad); }
  std::vector<Tensor>& grads() { return grads_; }

 private:
  const std::vector<Edge>& edges_;
  std::vector<Tensor> grads_;
};

using BackwardFn = std::function<void(Context&, const Tensor& dout, GradSink&)>;
using BackwardManyFn = std::function<void(Context&, const std::vector<Tensor>& douts, GradSink&)>;

// Wraps an operator's output; records a node when gradients are enabled and an input wants one.
// dout of an output that was never used arrives as zeros. Undefined inputs are allowed and want no gradient.
Variable record(Context& ctx, const char* name, Tensor out, std::vector<Variable> inputs, BackwardFn backward);
std::vector<Variable> record_many(Context& ctx, const char* name, std::vector<Tensor> outs,
                                  std::vector<Variable> inputs, BackwardManyFn backward, bool always = false);

// Gradients of every leaf below `root`, added to what the leaves hold. `dout` has root's shape; without it root must
// have one element and dout is 1. The graph is consumed: a second call throws Error.
void backward(Context& ctx, const Variable& root, const Tensor& dout = {});

// While alive, operators record nothing.
class NoGrad {
 public:
  explicit NoGrad(Context& ctx) : ctx_(ctx), before_(ctx.grad_enabled()) { ctx_.set_grad_enabled(false); }
  ~NoGrad() { ctx_.set_grad_enabled(before_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  Context& ctx_;
  bool before_;
};

}  // namespace pm
