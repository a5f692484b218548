#include "autograd/core/variable.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <utility>

#include "engine/core/check.h"
#include "engine/ops/elementwise/scaled_add.h"

namespace pm {

struct Node {
  Node(Context& ctx, const char* op, std::vector<Edge> edges, BackwardManyFn fn)
      : name(op),
        order(ctx.next_node_order()),
        inputs(std::move(edges)),
        backward(std::move(fn)),
        live(ctx.live_nodes()) {
    ++*live;
  }
  ~Node() { --*live; }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  struct Output {
    Shape shape;
    DType dtype;
    Tensor grad;
  };
  const char* name;
  int64_t order;
  std::vector<Edge> inputs;
  std::vector<Output> outputs;
  BackwardManyFn backward;  // empty once consumed
  std::shared_ptr<std::atomic<int64_t>> live;
};

Variable::Variable(Tensor value, bool requires_grad) : value_(std::move(value)) {
  if (requires_grad) edge_.leaf = std::make_shared<Leaf>();
}

const Tensor& Variable::grad() const {
  PM_CHECK(edge_.leaf != nullptr, Error, "only a leaf created with requires_grad has a gradient");
  return edge_.leaf->grad;
}

void Variable::clear_grad() {
  if (edge_.leaf != nullptr) edge_.leaf->grad = Tensor();
}

void Variable::set_grad(Tensor grad) {
  PM_CHECK(edge_.leaf != nullptr, Error, "only a leaf created with requires_grad has a gradient");
  PM_CHECK(grad.shape() == value_.shape(), ShapeError, "a gradient of shape {} does not fit a value of shape {}",
           grad.shape().str(), value_.shape().str());
  PM_CHECK(grad.dtype() == value_.dtype(), DTypeError, "a gradient of type {} does not fit a value of type {}",
           to_string(grad.dtype()), to_string(value_.dtype()));
  edge_.leaf->grad = std::move(grad);
}

std::vector<Variable> record_outputs(Context&, std::vector<Tensor> outs, std::shared_ptr<Node> node) {
  std::vector<Variable> variables;
  for (size_t i = 0; i < outs.size(); ++i) {
    Variable variable(std::move(outs[i]));
    if (node != nullptr) {
      node->outputs.push_back({variable.shape(), variable.value().dtype(), Tensor()});
      variable.edge_ = {node, static_cast<int>(i), nullptr};
    }
    variables.push_back(std::move(variable));
  }
  return variables;
}

std::vector<Variable> record_many(Context& ctx, const char* name, std::vector<Tensor> outs,
                                  std::vector<Variable> inputs, BackwardManyFn backward, bool always) {
  std::shared_ptr<Node> node;
  const bool wanted = std::any_of(inputs.begin(), inputs.end(), [](const Variable& v) { return v.requires_grad(); });
  if (ctx.grad_enabled() && (wanted || always)) {
    std::vector<Edge> edges;
    for (const Variable& input : inputs) edges.push_back(input.edge());
    node = std::make_shared<Node>(ctx, name, std::move(edges), std::move(backward));
  }
  return record_outputs(ctx, std::move(outs), std::move(node));
}

Variable record(Context& ctx, const char* name, Tensor out, std::vector<Variable> inputs, BackwardFn backward) {
  std::vector<Tensor> outs;
  outs.push_back(std::move(out));
  return record_many(ctx, name, std::move(outs), std::move(inputs),
                     [fn = std::move(backward)](Context& c, const std::vector<Tensor>& douts, GradSink& grads) {
                       fn(c, douts[0], grads);
                     })[0];
}

namespace {

// A leaf owns its gradient: later sums are made in place, so the first one must not be shared.
void add_to_leaf(Context& ctx, Leaf& leaf, Tensor grad) {
  if (!leaf.grad.defined()) {
    leaf.grad = grad.unique() ? std::move(grad) : grad.copy_to(ctx);
  } else {
    ops::add_in_place(ctx, leaf.grad, grad);
  }
}

void add_to_output(Context& ctx, Node::Output& output, Tensor grad) {
  output.grad = output.grad.defined() ? ops::scaled_add(ctx, output.grad, 1.0, grad, 1.0) : std::move(grad);
}

void run_node(Context& ctx, Node& node, GradSink& sink) {
  PM_CHECK(node.backward != nullptr, Error, "backward: the graph of {} was already consumed by an earlier backward()",
           node.name);
  std::vector<Tensor> douts;
  for (Node::Output& output : node.outputs) {
    douts.push_back(output.grad.defined() ? std::move(output.grad) : Tensor::zeros(ctx, output.shape, output.dtype));
    output.grad = Tensor();
  }
  node.backward(ctx, douts, sink);
  node.backward = nullptr;  // frees what the closure saved
}

}  // namespace

void backward(Context& ctx, const Variable& root, const Tensor& dout) {
  PM_CHECK(root.requires_grad(), Error, "backward: nothing below this variable requires a gradient");
  Tensor seed = dout;
  if (!seed.defined()) {
    PM_CHECK(root.value().numel() == 1, ShapeError, "backward without dout needs one element, got shape {}",
             root.shape().str());
    seed = ops::scaled_add(ctx, root.value(), 0.0, root.value(), 0.0);
    ops::add_constant_in_place(ctx, seed, 1.0);
  }
  PM_CHECK(seed.shape() == root.shape(), ShapeError, "backward: dout has shape {}, expected {}", seed.shape().str(),
           root.shape().str());
  NoGrad no_grad(ctx);
  if (root.edge().leaf != nullptr) return add_to_leaf(ctx, *root.edge().leaf, seed);

  // Reverse recording order visits every consumer of a value before its producer.
  std::map<int64_t, std::shared_ptr<Node>, std::greater<>> pending;
  add_to_output(ctx, root.edge().node->outputs[static_cast<size_t>(root.edge().index)], seed);
  pending.emplace(root.edge().node->order, root.edge().node);
  while (!pending.empty()) {
    const std::shared_ptr<Node> node = pending.begin()->second;
    pending.erase(pending.begin());
    GradSink sink(node->inputs);
    run_node(ctx, *node, sink);
    for (size_t i = 0; i < node->inputs.size(); ++i) {
      Tensor grad = std::move(sink.grads()[i]);
      const Edge& edge = node->inputs[i];
      if (!grad.defined() || !edge.wanted()) continue;
      if (edge.leaf != nullptr) {
        add_to_leaf(ctx, *edge.leaf, std::move(grad));
      } else {
        add_to_output(ctx, edge.node->outputs[static_cast<size_t>(edge.index)], std::move(grad));
        pending.emplace(edge.node->order, edge.node);
      }
    }
  }
}

}  // namespace pm
