"""The smallest recipe of each kind of task: with a module here, a kind is held to ``test_every_task.py``.

The module has the name of the kind, with ``_`` for ``-``, and two functions:

* ``write(folder) -> recipe`` writes a table or folder of examples, a backbone of a few thousand weights, and a recipe
  over them. Its model has dropout, or a resumed run that drew other numbers would pass; and no batch norm, which makes
  what is learned depend on how examples are spread over processes. What the snippet of the card opens, such as
  ``photo.jpg``, lies beside the recipe.
* ``plain(model, source) -> columns`` says what plain libraries, and nothing of hftoolkit, make of the recipe's own
  ``data.source`` with the exported model, as the table of ``predict`` shows it; columns that it leaves out are not
  compared.
"""
