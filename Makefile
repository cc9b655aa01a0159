# Two commands are all a newcomer needs: `make demo` and `make test`. Both set themselves up. What they do is in scripts/.

.PHONY: demo test test-slow lint

demo:  ## set up, train three small models on associative recall, evaluate them, print a table and draw a figure
	scripts/demo.sh

test:  ## set up, lint, run the tests
	scripts/test.sh

test-slow:  ## set up, lint, run the tests that need a download or minutes: a pretrained model, trained selection, rates
	scripts/test_slow.sh

lint:  ## set up, check style and formatting
	scripts/lint.sh
