"""Where a template is looked at while it runs: its syntax tree, with the checks of `bounds` in it.

A check is a filter whose name begins with `_`. Conversations of usual size should not pay for them,
so there is none where nothing can grow: a sum inside `{{ }}` becomes part of a text that is counted
when it is joined, a list of constants stays as it is, and `loop.index0 % 2` is a number.
"""

from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.visitor import NodeTransformer

_FREE_LOOPS = 8
_CHOOSING = ("select", "selectattr", "reject", "rejectattr")
_TERMS = 64  # of a sum inside {{ }}: each is a value that was counted when it was made


class CheckingGenerator(CodeGenerator):
    """Jinja's compiler, with the checks written into what it compiles."""

    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        stored = {one.name for one in node.find_all(nodes.Name) if one.ctx != "load"}
        checked = Checks("loop" not in stored).visit(node)
        checked.set_environment(self.environment)
        super().visit_Template(checked, frame)

    def buffer(self, frame: Frame) -> None:
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.buffer()")


class Checks(NodeTransformer):
    """Writes the checks; `own_loop`: the template calls nothing `loop` but what jinja does."""

    def __init__(self, own_loop: bool) -> None:
        self.own_loop = own_loop

    def visit_Template(self, node: nodes.Template) -> nodes.Node:
        """A loop that stands in no other and in no macro ends with what it goes over: the first
        few of them, which are all that usual templates have, are not counted."""
        outer = [one for one in node.body if isinstance(one, nodes.For) and not one.recursive]
        self.free = {id(one) for one in outer[:_FREE_LOOPS]}
        return self.generic_visit(node)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        free = id(node) in self.free
        node = self.generic_visit(node)
        if not free:
            node.iter = _checked("counted", node.iter)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        """`messages | selectattr(...) | list` has no more than the messages."""
        chosen = isinstance(node.node, nodes.Filter) and node.node.name in _CHOOSING
        node = self.generic_visit(node)
        if node.name == "list" and chosen and not node.args:
            node.name = "_list"
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        node.nodes = [self._sum(one) or self.visit(one) for one in node.nodes]
        return node

    def _sum(self, node: nodes.Node) -> nodes.Node | None:
        """A sum of a few terms, each looked at; None for what is none."""
        chain = []
        last = node
        while isinstance(last, nodes.Add):
            chain.append(last)
            last = last.left
        if not 0 < len(chain) <= _TERMS:
            return None
        chain[-1].left = self.visit(last)
        for one in chain:
            one.right = self.visit(one.right)
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        return _checked("sized", self._sum(node) or self.generic_visit(node))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        return _checked("joined", nodes.List(self.generic_visit(node).nodes, lineno=node.lineno))

    def visit_Mul(self, node: nodes.Mul) -> nodes.Node:
        return self._operation("times", node)

    def visit_Pow(self, node: nodes.Pow) -> nodes.Node:
        return self._operation("power", node)

    def visit_Mod(self, node: nodes.Mod) -> nodes.Node:
        """`loop.index0 % 2` is in every second template, and a number; a text would be a format."""
        left, loop = node.left, getattr(node.left, "node", None)
        counts = isinstance(left, nodes.Getattr) and left.attr in ("index", "index0")
        if counts and self.own_loop and isinstance(loop, nodes.Name) and loop.name == "loop":
            return node
        return self._operation("remainder", node)

    def _operation(self, name: str, node: nodes.BinExpr) -> nodes.Node:
        node = self.generic_visit(node)
        return _checked(name, node.left, node.right)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._container(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._container(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return node if node.ctx == "store" else self._container(node)

    def _container(self, node: Any) -> nodes.Node:
        """Nine lists of nine lists of nine ...: what is printed of it grows as a power."""
        constant = all(isinstance(one, nodes.Const) for one in node.iter_child_nodes())
        return node if constant else _checked("sized", self.generic_visit(node))


def _checked(name: str, value: nodes.Expr, *more: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, f"_{name}", list(more), [], None, None, lineno=value.lineno)
