"""Answers that follow a grammar: JSON Schema, regular expressions, choices, Lark and GBNF.

How the parts meet::

    GrammarSpec  ──GrammarCompiler.compile──▶  CompiledGrammar  ──SamplingParams.grammar──▶  GrammarState
    (spec.py)      (compiler.py, awaited         (grammar.py,       (one request)             (grammar.py, one
     what is        before admission)             cached, shared)                              a sequence)
     asked for)

- A route makes a :class:`~manylora.server.grammars.spec.GrammarSpec` of what a request says. It is a value:
  equal ones are compiled once. ``param`` names the field to blame and is no part of that.
- ``await service.grammars.compile(spec, conventions.tokenizer)`` gives a ``CompiledGrammar`` or raises
  ``RequestError``, within a second, whatever the text is: it is checked in a process of its own first.
- ``sampling_params(..., grammar=compiled)`` puts it into :class:`SamplingParams`; each of the n sequences
  starts a ``GrammarState`` of it. The engine tells the state each token drawn; the state says which may
  follow, as bits. All of it is worked out by a helper thread while the model computes.

What follows a block of reasoning, or a tool call amid free text, is a grammar like any other: a
:class:`~manylora.server.grammars.spec.Preface` for the first, Lark with lazy lexemes for the second. There is
no second mechanism that switches a grammar on.
"""
