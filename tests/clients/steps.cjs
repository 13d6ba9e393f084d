// What both scripts share: steps with names, a limit for each, and the way a script ends.

const STEP_LIMIT_MS = 30_000;

exports.step = async function step(name, run) {
  let timer;
  const since = performance.now();
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${STEP_LIMIT_MS} ms`)), STEP_LIMIT_MS);
  });
  try {
    const result = await Promise.race([run(), late]);
    console.log(`ok ${name} (${Math.round(performance.now() - since)} ms)`);
    return result;
  } catch (error) {
    console.error(`failed ${name}: ${error.stack ?? error}`);
    process.exit(1);
  } finally {
    clearTimeout(timer);
  }
};

exports.same = function same(found, expected) {
  if (JSON.stringify(found) !== JSON.stringify(expected)) {
    throw new Error(`${JSON.stringify(found)} is not ${JSON.stringify(expected)}`);
  }
};

exports.main = function main(phases) {
  const [name, endpoint, pages] = process.argv.slice(2);
  const phase = phases[name];
  if (!phase || !endpoint || !pages) {
    console.error(`usage: SCRIPT ${Object.keys(phases).join('|')} ENDPOINT PAGES`);
    process.exit(2);
  }
  phase(endpoint, pages).then(
    () => {
      console.log('done');
      process.exit(0);
    },
    error => {
      console.error(error);
      process.exit(1);
    },
  );
};
