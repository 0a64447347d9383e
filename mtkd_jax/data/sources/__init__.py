"""Data sets. One public function a source, found by its return annotation `-> DataSet`.

To add a source, write a function in the module of its kind that ends with `return check(DataSet(...),
where)`: the check makes sure that whatever leaves this package can be trained on, or raises UserError.
"""
